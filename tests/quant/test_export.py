"""What `llmc export` writes is what llmc reads: the same codes, the same values, in every format."""

from __future__ import annotations

import json

import pytest
import torch
from llmc.errors import UnsupportedError, UsageError
from llmc.export import export
from llmc.quant.formats.registry import open_checkpoint
from server import tiny

CASES = {
    "gptq": ["int2:g32", "int3:g32", "int4:g32", "int4:g64:asym", "int4:channel", "int8:g32"],
    "awq": ["int4:g32", "int4:g32:asym"],
    "compressed-tensors": [
        "int4:g32",
        "int4:g32:asym",
        "int8",
        "int8:g32:asym/bf16",
        "fp8",
        "fp8_e4m3:block128",
        "mxfp4",
        "mxfp8",
    ],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint whose weights fill groups of 64."""
    where = tiny.save_model(tmp_path_factory.mktemp("even"), intermediate_size=128)
    tiny.save_tokenizer(where)
    return str(where)


def values(folder):
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name).float() for name in checkpoint.readers}


@pytest.mark.parametrize(("form", "quant"), [(form, quant) for form, quants in CASES.items() for quant in quants])
def test_a_written_checkpoint_reads_as_the_same_values(source, tmp_path, form, quant):
    skip = ("--scheme", "lm_head=f32"), ("--scheme", "*embed*=f32")
    export(source, tmp_path / "x", form, quant=quant)
    export(source, tmp_path / "dense", "dense", quant=quant, scheme=tuple(s for _, s in skip))
    got, wanted = values(tmp_path / "x"), values(tmp_path / "dense")
    assert got.keys() == wanted.keys()
    assert len(open_checkpoint(tmp_path / "x").stored) == 14
    for name, value in wanted.items():
        # scales by channel are float32 here and float16 in GPTQ's and AWQ's files
        torch.testing.assert_close(got[name], value, rtol=1e-3 if "channel" in quant else 0, atol=0)


@pytest.mark.parametrize("quant", ["int4:g32", "int4:g64:asym", "int5:g32", "int5:g32:asym", "int8:g32", "mxfp4", "bf16"])
def test_a_written_gguf_file_reads_as_the_same_values(source, tmp_path, quant):
    export(source, tmp_path / "x", "gguf", quant=quant)
    export(source, tmp_path / "dense", "dense", quant=quant)
    export(str(tmp_path / "x" / "model.gguf"), tmp_path / "back", "dense", dtype="f32")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"]  # which a GGUF does not name
    got, wanted = values(tmp_path / "back"), values(tmp_path / "dense")
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        # a zero point becomes a float16 minimum, and scales by channel (embeddings, head) become float16
        torch.testing.assert_close(got[name], value, rtol=2e-3, atol=2e-3 if "asym" in quant else 1e-6)


def test_chosen_codes_are_written(source, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text(tiny.TEXT * 4, encoding="utf-8")
    how = {"quant": "int4:g32", "algorithm": "gptq", "calibration": str(text)}
    export(source, tmp_path / "x", "gptq", **how)
    export(source, tmp_path / "rounded", "gptq", quant="int4:g32")
    export(source, tmp_path / "dense", "dense", **how)
    chosen, rounded, dense = values(tmp_path / "x"), values(tmp_path / "rounded"), values(tmp_path / "dense")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(chosen[name], dense[name])
    assert not torch.equal(chosen[name], rounded[name])


def test_experts_are_taken_apart(checkpoint, tmp_path):
    export(str(checkpoint("mixtral")), tmp_path / "x", "compressed-tensors", quant="int4:g32")
    names = open_checkpoint(tmp_path / "x").stored
    assert any(".experts.0." in n for n in names)
    settings = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "compressed-tensors"
    assert "lm_head" in settings["ignore"]


def test_mixed_schemes(source, tmp_path):
    how = {"quant": "int4:g32", "scheme": ("*.down_proj=int8:g32/bf16", "*.k_proj=f32")}
    for form in ("gptq", "compressed-tensors"):
        export(source, tmp_path / form, form, **how)
        stored = open_checkpoint(tmp_path / form).stored
        assert stored["model.layers.0.mlp.down_proj.weight"]().scheme.bits == 8
        assert stored["model.layers.0.mlp.up_proj.weight"]().scheme.bits == 4
        assert "model.layers.0.self_attn.k_proj.weight" not in stored


def test_what_a_format_cannot_hold_is_refused(source, checkpoint, tmp_path):
    for form, quant, what in (
        ("awq", "int8", "4-bit"),
        ("gptq", "mxfp4", "integers"),
        ("compressed-tensors", "nf4", "compressed-tensors"),
        ("gguf", "int3:g32", "int3"),
    ):
        with pytest.raises(UnsupportedError, match=what):
            export(source, tmp_path / form, form, quant=quant)
    with pytest.raises(UnsupportedError, match="one scheme"):
        export(source, tmp_path / "two", "awq", quant="int4:g32", scheme=("*.down_proj=int4:g64",))
    with pytest.raises(UsageError, match="nothing is quantized"):
        export(source, tmp_path / "none", "gptq")
    with pytest.raises(UnsupportedError, match="gpt_neox"):
        export(str(checkpoint("gpt_neox")), tmp_path / "neox", "gguf", quant="int4:g32")
