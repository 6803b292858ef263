"""Compiling with a calibrated algorithm: nearer to the original than rounding, on any architecture, the same bytes each time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from llmc.errors import InputError, UnsupportedError, UsageError
from llmc.quant.calibration_text import calibration_text
from server import tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    where = tmp_path_factory.mktemp("text") / "text.txt"
    where.write_text(calibration_text("")[600:20_000], encoding="utf-8")
    return where


def divergence(path, original):
    """Mean squared distance of the logits from the original's, on text that was not seen."""
    import llmc

    with llmc.load(path, threads=1) as a, llmc.load(original, threads=1) as b:
        ids = a.tokenizer.encode(calibration_text("")[:600])
        return float(np.square(a.logits([ids])[0] - b.logits([ids])[0]).mean())


@pytest.mark.parametrize("quant", ["int4:g32/f32", "int3:g32:asym/f32"])
def test_it_is_nearer_to_the_original_than_rounding(text, quant):
    chosen, rounded = (
        tiny.compiled(tiny.checkpoint(), f"{algorithm}-{quant[:4]}", quant=quant, algorithm=algorithm, force=True, **extra)
        for algorithm, extra in (("gptq", {"calibration": str(text)}), ("rtn", {}))
    )
    assert divergence(chosen, tiny.artifact()) < divergence(rounded, tiny.artifact())


@pytest.mark.parametrize("key", ["gpt2", "mixtral", "gpt_oss", "gemma2"])
def test_every_kind_of_weight_takes_chosen_codes(checkpoint, tmp_path, text, key):
    """Transposed, merged, gated and expert weights: the codes that were chosen are those that are packed, or the compile fails."""
    import shutil

    import llmc

    folder = tmp_path / key
    shutil.copytree(checkpoint(key, vocab_size=tiny.VOCAB), folder)
    for file in tiny.checkpoint().glob("tokenizer*"):
        shutil.copy(file, folder)
    report = llmc.compile(
        str(folder), tmp_path / "a.llmc", quant="int4:g32/f32", algorithm="gptq", calibration=str(text), target=("cpu:native",)
    )
    assert any(s.startswith("int4:g32") for s in report.quant.values())
    assert report.conformance["kl_mean"] < 0.5


def test_two_compiles_give_the_same_bytes(text, tmp_path):
    made = [
        tiny.compiled(tiny.checkpoint(), f"twice-{i}", quant="int4:g32", algorithm="gptq", calibration=str(text)).read_bytes()
        for i in range(2)
    ]
    assert made[0] == made[1]


def test_text_may_be_lines_of_json(tmp_path):
    where = tmp_path / "x.jsonl"
    rows = [
        {"text": "a b"},
        {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
        {"prompt": "e"},
    ]
    where.write_text("\n".join(json.dumps(r) for r in rows))
    assert calibration_text(str(where)).split() == ["a", "b", "c", "d", "e"]
    where.write_text("no json")
    with pytest.raises(InputError, match="line 1"):
        calibration_text(str(where))
    with pytest.raises(InputError, match=r"none\.txt"):
        calibration_text(str(tmp_path / "none.txt"))


def test_the_text_that_comes_with_llmc_is_mixed():
    text = calibration_text("")
    assert len(text) > 50_000
    for word in ("def ", "User:", "Le ", "Der ", "秋", "SELECT"):
        assert word in text


def test_what_cannot_be_calibrated_says_so(tmp_path, text):
    import llmc

    out = tmp_path / "a.llmc"
    with pytest.raises(UsageError, match="nothing to quantize"):
        llmc.compile(str(tiny.checkpoint()), out, algorithm="gptq", calibration=str(text), target=("cpu:native",))
    with pytest.raises(UnsupportedError, match="awq"):
        llmc.compile(str(tiny.checkpoint()), out, quant="int4", algorithm="awq")
    with pytest.raises(UsageError, match="gptqq"):
        llmc.compile(str(tiny.checkpoint()), out, quant="int4", algorithm="gptqq")
    assert not out.exists()
