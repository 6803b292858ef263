"""Compiling with a calibrated algorithm: nearer to the original than rounding, on any architecture, the same bytes each time."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from llmc.errors import GateFailed, InputError, UsageError
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


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "awq+gptq"])
@pytest.mark.parametrize("quant", ["int4:g32/f32", "int3:g32:asym/f32"])
def test_it_is_nearer_to_the_original_than_rounding(text, quant, algorithm):
    chosen, rounded = (
        tiny.compiled(tiny.checkpoint(), f"{name}-{quant[:4]}", quant=quant, algorithm=name, force=True, **extra)
        for name, extra in ((algorithm, {"calibration": str(text)}), ("rtn", {}))
    )
    assert divergence(chosen, tiny.artifact()) < divergence(rounded, tiny.artifact())


@pytest.mark.parametrize("algorithm", ["gptq", "awq+gptq"])
@pytest.mark.parametrize("key", ["gpt2", "mixtral", "gpt_oss", "gemma2", "phi3"])
def test_every_kind_of_weight_takes_chosen_codes(checkpoint, tmp_path, text, key, algorithm):
    """Transposed, merged, gated and expert weights: the codes that were chosen are those that are packed, or the compile fails."""
    import shutil

    import llmc

    folder = tmp_path / key
    shutil.copytree(checkpoint(key, vocab_size=tiny.VOCAB), folder)
    for file in tiny.checkpoint().glob("tokenizer*"):
        shutil.copy(file, folder)
    report = llmc.compile(
        str(folder), tmp_path / "a.llmc", quant="int4:g32/f32", algorithm=algorithm, calibration=str(text), target=("cpu:native",)
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
    for name, what in (("gptqq", "gptqq"), ("awq+smoothquant", "two of a kind"), ("gptq+", "cannot be")):
        with pytest.raises(UsageError, match=re.escape(what)):
            llmc.compile(str(tiny.checkpoint()), out, quant="int4", algorithm=name)
    assert not out.exists()


def test_smoothing_helps_where_few_inputs_are_large(text, tmp_path):
    """Outlier channels, as large models have them: int8 activations are nearer to the original with smoothed ones."""
    from safetensors.torch import load_file, save_file

    folder = tiny.save_model(tmp_path / "outliers")
    tiny.save_tokenizer(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith("layernorm.weight"):
            value[5] *= 60
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    original = tiny.compiled(folder, "outliers", quant="none")
    smooth, plain = (
        tiny.compiled(folder, f"outliers-{name}", quant="int8", algorithm=name, calibration=str(text))
        for name in ("smoothquant", "rtn")
    )
    assert divergence(smooth, original) < 0.5 * divergence(plain, original)


def test_auto_meets_a_size_and_a_divergence(text, tmp_path):
    import llmc

    source = str(tiny.save_model(tmp_path / "source", hidden_size=256, intermediate_size=512))
    tiny.save_tokenizer(tmp_path / "source")
    how = {"quant": "auto", "calibration": str(text), "target": ("cpu:native",)}
    small = llmc.compile(source, tmp_path / "a.llmc", target_size="1.4MB", plot=str(tmp_path / "a.svg"), **how)
    near = llmc.compile(source, tmp_path / "b.llmc", max_kl=0.004, **how)
    assert (tmp_path / "a.llmc").stat().st_size == small.bytes <= 1_400_000
    assert near.conformance["kl_mean"] <= 0.004
    assert near.bytes > small.bytes
    assert len(set(small.quant.values())) > 1
    assert sum(p["chosen"] for p in near.curve) == 1
    svg = (tmp_path / "a.svg").read_text()
    assert svg.startswith("<svg")
    assert "polyline" in svg
    for impossible in ({"target_size": "600kB"}, {"max_kl": 1e-9}):
        with pytest.raises(GateFailed):
            llmc.compile(source, tmp_path / "c.llmc", **impossible, **how)
    assert not (tmp_path / "c.llmc").exists()
    for wrong in ({}, {"target_size": "80X"}, {"max_kl": 1.0, "group_size": 32}, {"max_kl": 1.0, "weights": "none"}):
        with pytest.raises(UsageError):
            llmc.compile(source, tmp_path / "c.llmc", **how, **wrong)
    with pytest.raises(UsageError, match="quant auto"):
        llmc.compile(source, tmp_path / "c.llmc", quant="int4", target_size="1MB")


def test_auto_leaves_named_weights_alone(text, tmp_path):
    import llmc

    report = llmc.compile(
        str(tiny.checkpoint()), tmp_path / "a.llmc", quant="auto", max_kl=0.5, calibration=str(text),
        scheme=("*.down_proj=int8:g32/f32",), target=("cpu:native",),
    )  # fmt: skip
    assert report.quant["model.layers.*.mlp.down_proj"] == "int8:g32/f32"
