"""`llmc bench`: what it counts, not how fast anything is."""

from __future__ import annotations

import pytest
from llmc.errors import UsageError
from llmc.runtime.bench import BenchSettings, run_bench


@pytest.fixture(scope="module")
def result(checkpoint, artifact):
    settings = BenchSettings(
        prompt_len=40, gen_len=8, concurrency=(1, 3), concurrent_prompt_len=5, concurrent_gen_len=4, reps=1, profile=True
    )
    return run_bench(str(artifact(checkpoint("llama"), quant="int8")), settings, threads=1)


def rows(result, work, part=""):
    return [row for row in result["profile"] if row["work"] == work and part in row["kernel"]]


def test_every_kind_of_work_is_profiled_whole(result):
    assert list(dict.fromkeys(row["work"] for row in result["profile"])) == ["prefill", "decode", "3 at once"]
    for work in ("prefill", "decode", "3 at once"):
        assert sum(row["share"] for row in rows(result, work)) == pytest.approx(1.0)
        assert all(row["seconds"] >= 0 and row["fraction_of_floor"] >= 0 for row in rows(result, work))


def test_operations_follow_from_the_rows_of_a_step(result):
    decode, prefill, many = ({r["kernel"]: r for r in rows(result, w)} for w in ("decode", "prefill", "3 at once"))
    down = next(name for name in decode if "down_proj" in name)
    head = next(name for name in decode if "lm_head" in name)
    assert decode[down]["operations"] == 2 * 2 * 64 * 96  # two layers, a multiply and an add each
    assert prefill[down]["operations"] == 40 * decode[down]["operations"]
    assert many[down]["operations"] == 3 * decode[down]["operations"]
    assert prefill[head]["operations"] == decode[head]["operations"]
    assert prefill[down]["bytes"] == decode[down]["bytes"] > 0


def test_attention_is_counted_by_the_positions_that_it_sees(result):
    (decode,), (prefill,) = rows(result, "decode", "attend"), rows(result, "prefill", "attend")
    a_position = 2 * 2 * 4 * (16 + 16)  # two layers, four heads of 16 channels of keys and of values
    assert decode["operations"] == a_position * 44  # 40 of the prompt, and 4 of the 8 that follow
    assert prefill["operations"] == a_position * 40 * 40 // 2
    assert prefill["bytes"] == 40 * 2 * 2 * (32 + 16) * 4  # two key heads in float32; keys lie in chunks of 32 channels


def test_floors_are_what_cannot_be_beaten(result):
    assert set(result["floor"]) == {"decode_tok_s", "prefill_tok_s"}
    assert [row["n"] for row in result["concurrent"]] == [1, 3]
    assert all(row["floor_tok_s"] > row["output_tok_s"]["median"] > 0 for row in result["concurrent"])


@pytest.mark.parametrize(("name", "length"), [("prompt_len", 255), ("concurrent_prompt_len", 256)])
def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_timed(name, length, checkpoint, artifact, monkeypatch):
    monkeypatch.setattr("llmc.runtime.bench._cold_start", lambda *given: pytest.fail("it was started"))
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} {length} is too long: this model serves 256 positions"):
        run_bench(
            str(artifact(checkpoint("llama"), quant="int8")),
            BenchSettings(**{"prompt_len": 8, "concurrent_prompt_len": 8, name: length}),
        )
