"""llmc tune and --tuning: a table is searched, used, hashed and rebuilt from; it changes no bit; a wrong one is told what is wrong."""

from __future__ import annotations

import json

import llmc as package
import pytest
from llmc import tune as search
from llmc.codegen.tuning import KNOBS, MACROS, Tuning, read_tuning, shipped_tuning
from llmc.runtime.cpu_info import available_levels

IDS = list(range(5, 60))


def table(levels, **more):
    return json.dumps({"tuning": 1, "provenance": [], "levels": levels, **more})


def test_a_table_changes_the_kernels_and_no_bit(llmc, source, here):
    level = available_levels()[0]
    (here / "t.json").write_text(table({level: {"few_rows": 2, "piece": 8}}))
    for name, options in (("plain", []), ("tuned", ["--tuning", "t.json"])):
        llmc("compile", source, "-o", f"{name}.llmc", "--quant", "int4", "--target", f"cpu:{level}", *options)
    assert (here / "plain.llmc").read_bytes() != (here / "tuned.llmc").read_bytes()
    logits = []
    for name in ("plain", "tuned"):
        with package.load(here / f"{name}.llmc", threads=2) as model:
            logits.append([model.logits([IDS, IDS[:9], IDS[:3]], chunk=c)[0].tobytes() for c in (len(IDS), 5, 1)])
    assert logits[0] == logits[1]
    shown = llmc("verify", "tuned.llmc", "--rebuild", "--json").json
    assert shown["ok"]


def test_the_shipped_table_is_valid_and_its_header_names_every_level():
    text = shipped_tuning().header()
    assert all(f"defined({macro})" in text for macro in MACROS.values())
    made = Tuning({"x86-64-v3": {"piece": 64}})
    assert made.value("x86-64-v3", "piece") == 64 and made.value("x86-64-v4", "piece") == KNOBS["piece"].values[0]
    assert made.header().count("#define PIECE 64\n") == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nope", "cannot be read"),
        ("[]", "not a tuning table"),
        (json.dumps({"tuning": 9, "levels": {}}), "not a tuning table"),
        (table([]), "not a mapping"),
        (table({"x86-64-v9": {}}), "unknown level"),
        (table({"x86-64-v4": 3}), "not a mapping"),
        (table({"x86-64-v4": {"pieces": 3}}), "unknown knob"),
        (table({"x86-64-v4": {"piece": 3}}), "cannot be 3"),
        (table({"x86-64-v4": {"piece": True}}), "cannot be True"),
    ],
)
def test_a_wrong_table_is_4(fails, source, here, text, what):
    (here / "t.json").write_text(text)
    assert what in fails(4, "compile", source, "-o", "x.llmc", "--tuning", "t.json")
    assert not (here / "x.llmc").exists()


def test_a_missing_table_is_4_and_one_for_a_gpu_is_2(fails, source, here):
    fails(4, "compile", source, "-o", "x.llmc", "--tuning", "none.json")
    (here / "t.json").write_text(table({}))
    fails(2, "compile", source, "-o", "x.llmc", "--tuning", "t.json", "--target", "cuda:sm_90")


def test_impossible_searches(fails, here):
    (here / "t.json").write_text("mine")
    fails(2, "tune", "-o", "t.json")
    fails(2, "tune", "-o", "no/such/folder/t.json")
    fails(2, "tune", "-o", "u.json", "--isa", "x86-64-v44")
    assert (here / "t.json").read_text() == "mine" and not (here / "u.json").exists()


def test_a_search_writes_a_table_that_a_compile_takes(llmc, source, here, monkeypatch):
    monkeypatch.setattr(search, "SCHEMES", ("int8",))
    monkeypatch.setattr(
        search, "SHAPE", {**search.SHAPE, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 128}
    )
    monkeypatch.setattr(search, "ROUNDS", 1)
    shown = llmc("tune", "-o", "t.json", "--threads", "1", "--json").json
    assert shown == json.loads((here / "t.json").read_text())
    (measured,) = shown["provenance"]
    assert len(measured["tried"]) >= sum(len(k.values) - 1 for k in KNOBS.values())
    assert all(row["time"] > 0 and set(row["cells"]) == {f"int8, {s}" for s in search.STEPS} for row in measured["tried"])
    assert read_tuning(here / "t.json").facts() == shown["levels"]
    llmc("compile", source, "-o", "x.llmc", "--quant", "int8", "--tuning", "t.json", "--target", "cpu:native")
