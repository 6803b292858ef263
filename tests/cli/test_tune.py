"""llmc tune and --tuning: a table is searched, used, hashed and rebuilt from; it changes no bit; a wrong one is told what is wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import llmc as package
import numpy as np
import pytest
from llmc import tune as search
from llmc import tune_gpu as search_gpu
from llmc.codegen.tuning import KNOBS, MACROS, Tuning, read_tuning, shipped_tuning
from llmc.runtime.artifact import open_artifact
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
        (table({"cuda:sm_91": {}}), "unknown chip"),
        (table({"cuda:sm_90": {"bf16": {}}}), "is no product"),
        (table({"cuda:sm_90": {"bf16 64x64": {"7": {}}}}), "a number of rows"),
        (table({"cuda:sm_90": {"bf16 64x64": {"8": {"depth": 2}}}}), "unknown field"),
        (table({"cuda:sm_90": {"bf16 64x64": {"8": {"bn": 48}}}}), "cannot be 48"),
    ],
)
def test_a_wrong_table_is_4(fails, source, here, text, what):
    (here / "t.json").write_text(text)
    assert what in fails(4, "compile", source, "-o", "x.llmc", "--tuning", "t.json")
    assert not (here / "x.llmc").exists()


def test_a_missing_table_is_4_and_one_for_no_target_is_2(fails, source, here):
    fails(4, "compile", source, "-o", "x.llmc", "--tuning", "none.json")
    (here / "t.json").write_text(table({"x86-64-v3": {}}))
    said = fails(2, "compile", source, "-o", "x.llmc", "--tuning", "t.json", "--target", "cuda:sm_90")
    assert "the table is for x86-64-v3" in said


@pytest.mark.parametrize("fields", [{"unroll": 2}, {"registers": 64}, {"bn": 32, "bk": 1024}], ids=str)
def test_a_tile_that_does_not_fit_its_product_is_4(fails, source, here, fields):
    products = [f"bf16 {n}x{k}" for n in (64, 96, 128, 192, 256) for k in (64, 96, 128)]
    (here / "t.json").write_text(table({"cuda:sm_90": {name: {"8": fields} for name in products}}))
    said = fails(
        4,
        "compile",
        source,
        "-o",
        "x.llmc",
        "--quant",
        "bf16",
        "--tuning",
        "t.json",
        "--target",
        "cuda:sm_90",
        "--weights",
        "none",
    )
    assert "tuning table" in said


class Device:
    """In a GPU's place: a kernel with five stages takes half of the time, one with 128 outputs a tile a tenth, and gives other bits."""

    def __init__(self, kernels):
        self.kernels = kernels
        self.closed = False

    def run(self, batch):
        assert not self.closed

    def logits(self, rows):
        changed = any(dict(k.constants).get("BN") == 128 and k.function == "linear" for k in self.kernels.values())
        return np.full(rows, float(changed))

    def profile(self, batch, rounds):
        def seconds(kernel):
            return (0.5 if kernel.stages == 5 else 1.0) * (0.1 if dict(kernel.constants).get("BN") == 128 else 1.0)

        return [{"kernel": name, "seconds": seconds(kernel)} for name, kernel in self.kernels.items()]

    def close(self):
        self.closed = True


@pytest.fixture
def devices(monkeypatch):
    """What a search makes in a machine with such a GPU of the kind sm_90."""
    made = []

    def executor(case, choice):
        emitted, owners = case.lowered(choice)
        kernels = {kernel.name: kernel for kernel in emitted.plans[0][1].kernels() if kernel.name in owners}
        made.append(Device(kernels))
        return made[-1], owners

    monkeypatch.setattr(search_gpu._Case, "executor", executor)
    chip = SimpleNamespace(probe=lambda: "sm_90", runs=lambda binary, device: binary == device)
    monkeypatch.setattr(search_gpu, "driver_module", lambda family: chip)
    return made


def test_a_search_on_a_gpu_takes_what_is_faster_and_keeps_the_bits(llmc, fails, source, here, devices):
    arguments = ("tune", "-o", "t.json", "--target", "cuda", "--model", source, "--quant", "bf16", "--quant", "int4:g32/bf16")
    shown = llmc(*arguments, "--json").json
    assert shown == json.loads((here / "t.json").read_text())
    assert all(device.closed for device in devices)
    found = shown["levels"]["cuda:sm_90"]
    assert found, "nothing was faster"
    assert all(fields.get("stages") == 5 for tiles in found.values() for fields in tiles.values())
    assert not any(fields.get("bn") == 128 for tiles in found.values() for fields in tiles.values())
    assert any(row.get("refused") and row.get("bn") == 128 for row in shown["provenance"][0]["tried"])
    assert {name.partition(" ")[0] for name in found} == {"bf16", "int4:g32"}
    assert "0.500 of the time with stages 5" in llmc(*arguments, "--force").out
    for name, options in (("plain", []), ("tuned", ["--tuning", "t.json"])):
        llmc("compile", source, "-o", f"{name}.llmc", "--quant", "bf16", "--target", "cuda:sm_90", "--weights", "none", *options)
    stages = []
    for name in ("plain", "tuned"):
        plan = json.loads(open_artifact(here / f"{name}.llmc").read("kernels/cuda/sm_90/plan.json"))
        stages.append([k["constants"]["STAGES"] for k in plan["kernels"].values() if k["function"] in ("linear", "linear_tiles")])
    assert stages[0] != stages[1] and stages[1].count(5) > stages[0].count(5)
    assert llmc("verify", "tuned.llmc", "--rebuild", "--json").json["ok"]
    fails(5, "tune", "-o", "u.json", "--target", "cuda:sm_80")
    fails(2, "tune", "-o", "u.json", "--target", "cuda:sm_91")
    fails(2, "tune", "-o", "u.json", "--target", "gpu")
    fails(2, "tune", "-o", "u.json", "--target", "cuda", "--threads", "2")
    fails(2, "tune", "-o", "u.json", "--quant", "bf16")
    assert not (here / "u.json").exists()


def test_impossible_searches(fails, here):
    (here / "t.json").write_text("mine")
    fails(2, "tune", "-o", "t.json")
    fails(2, "tune", "-o", "no/such/folder/t.json")
    assert "is a folder" in fails(2, "tune", "-o", here, "--force")
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


def test_a_search_on_a_gpu_takes_files(llmc, fails, source, here, devices):
    for quant, name, target in (("bf16", "a", "cuda:sm_90"), ("int4:g32/bf16", "b", "cuda:sm_90"), ("bf16", "cpu", "cpu:native")):
        llmc("compile", source, "-o", f"{name}.llmc", "--quant", quant, "--target", target, "--weights", "none")
    shown = llmc("tune", "a.llmc", "b.llmc", "-o", "t.json", "--target", "cuda", "--json").json
    assert {name.partition(" ")[0] for name in shown["levels"]["cuda:sm_90"]} == {"bf16", "int4:g32"}
    assert shown["provenance"][0]["artifacts"] == ["a.llmc", "b.llmc"]
    assert "no kernels for cuda:sm_90" in fails(2, "tune", "cpu.llmc", "-o", "u.json", "--target", "cuda")
    fails(2, "tune", "a.llmc", "-o", "u.json", "--target", "cuda", "--model", source)
    fails(2, "tune", "a.llmc", "-o", "u.json")
    fails(4, "tune", "none.llmc", "-o", "u.json", "--target", "cuda")
    assert not (here / "u.json").exists()
