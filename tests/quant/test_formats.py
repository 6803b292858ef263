"""Checkpoints that other tools wrote: every code decoded as they decode it, and compiled artifacts beside their logits.

One small checkpoint of each format is in checkpoints/; more are read where LLMC_CHECKPOINTS, or a folder beside the
repository, has them. All are decoded; a tenth of them, another one each day, is compiled, and all with --all-formats.
"""

from __future__ import annotations

import datetime
import json
import os
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from llmc.compiler.checkpoint import know_newer_types
from llmc.errors import CheckpointError, UnsupportedError
from llmc.quant.formats.gguf import READERS, stored_blocks
from llmc.quant.formats.registry import open_checkpoint
from llmc.quant.levels import levels_of
from safetensors.torch import load_file, save_file
from tolerances import CHECKPOINT

HERE = Path(__file__).parent / "checkpoints"
MORE = Path(os.environ.get("LLMC_CHECKPOINTS", Path(__file__).parents[3] / "shared" / "fixtures"))


def folders():
    found = {
        p.name: p
        for root in (MORE, HERE)
        if root.is_dir()
        for p in sorted(root.iterdir())
        if (p / "expected.safetensors").exists()
    }
    found.pop("ggml-rawvectors", None)
    return [found[name] for name in sorted(found)]


def source(folder):
    return next(iter(folder.glob("*.gguf")), folder)


def pytest_generate_tests(metafunc):
    if "folder" in metafunc.fixturenames:
        chosen = folders()
        if "compiled" in metafunc.fixturenames and not metafunc.config.getoption("--all-formats"):
            day = datetime.date.today().toordinal()
            chosen = [p for i, p in enumerate(chosen) if i % 10 == day % 10]
        if "compiled" not in metafunc.fixturenames:  # one file came without its tool's values: the tool has none in Python
            chosen = [p for p in chosen if any(k.startswith("dequant") for k in expected(p))]
        metafunc.parametrize("folder", chosen, ids=lambda p: p.name)


@cache
def expected(folder):
    return load_file(folder / "expected.safetensors")


def hub_name(name, checkpoint):
    """The tools do not agree on the names of mixtral's experts."""
    for old, new in ((".w1.", ".gate_proj."), (".w2.", ".down_proj."), (".w3.", ".up_proj.")):
        for moe in ("block_sparse_moe", "mlp"):
            for changed in (name.replace("block_sparse_moe", moe), name.replace("block_sparse_moe", moe).replace(old, new)):
                if changed in checkpoint.readers:
                    return changed
    return name


def test_every_weight_is_what_its_tool_makes_of_it(folder):
    checkpoint = open_checkpoint(source(folder))
    wanted = {k: v for k, v in expected(folder).items() if k.startswith("dequant")}
    if checkpoint.gguf_architecture:
        from llmc.compiler.capture import build_model

        read = checkpoint.bind(build_model(checkpoint.config, "f32"))
        if any(".experts." in k for k in wanted):
            wanted = {k: v for k, v in wanted.items() if ".experts." not in k}  # held merged: the export's test takes them apart
    else:
        read = lambda name: checkpoint.read(hub_name(name, checkpoint))  # noqa: E731
    assert wanted
    for key, value in wanted.items():
        kind, _, name = key.partition("/")
        got = read(name).float()
        assert torch.equal(got[: value.shape[0]] if kind.endswith("rows") else got, value), name


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    import llmc

    def make(path):
        out = tmp_path_factory.mktemp("formats") / "a.llmc"
        return out, llmc.compile(str(path), out, target=("cpu:native",))

    return make


def test_the_artifact_computes_what_the_tool_computes(folder, compiled):
    import llmc

    out, report = compiled(source(folder))
    with llmc.load(out, threads=1) as model:
        got = model.logits(expected(folder)["input_ids"].tolist())[0]
    schemes = set(report.quant.values())
    rounded = next((a for a in ("mxfp4", "nvfp4", "fp8", "mxfp8", "int8") if any(f"/{a}" in s for s in schemes)), "")
    given = expected(folder)
    wanted = next(given[k] for k in (("logits", "logits_ref_f32") if rounded else ("logits_ref_f32", "logits")) if k in given)
    wanted = wanted[0].float().numpy()
    error = np.sqrt(((got - wanted) ** 2).mean(-1)) / wanted.std()
    bound = CHECKPOINT["4-bit activations" if rounded in ("mxfp4", "nvfp4") else "8-bit activations" if rounded else "weights"]
    assert np.median(error) < bound, error
    moe = "moe" in folder.name.lower() or "mixtral" in folder.name
    assert (error < 3 * bound).mean() >= (0.75 if moe else 1.0), error
    assert any(":stored" in s for s in schemes) or any(word in folder.name for word in ("F16", "fp4-llama", "axis0")), schemes


def blocks_of(kind):
    tensors = load_file(HERE / "ggml-rawvectors" / "expected.safetensors")
    names = {name.split("/")[0].upper(): name.split("/")[0] for name in tensors}
    return tensors[f"{names[kind]}/bytes"], tensors[f"{names[kind]}/dequant"]


know_newer_types()
RAW = {name.split("/")[0].upper() for name in load_file(HERE / "ggml-rawvectors" / "expected.safetensors")} - {"SRC"}


@pytest.mark.parametrize("kind", sorted(RAW - set(READERS)))
def test_blocks_that_are_used_dequantized_have_ggmls_values(kind):
    raw, values = blocks_of(kind)
    number = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[number][1]
    got = torch.from_numpy(gguf.dequantize(raw.reshape(-1, size).numpy(), number)).reshape(values.shape)
    assert torch.equal(got, values)
    assert stored_blocks(kind, raw, values.shape[0], lambda: values).scheme is None


@pytest.mark.parametrize("kind", sorted(READERS))
def test_blocks_are_codes_and_scales(kind):
    """Each ggml block type's codes and scales give ggml's own values, to the bit."""
    raw, values = blocks_of(kind)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    stored = stored_blocks(kind, raw.reshape(-1, size), values.shape[0], lambda: values)
    index = torch.arange(values.shape[1]) // stored.scheme.group
    scales = stored.scales[:, index]
    if not stored.scheme.is_integer:
        got = levels_of(stored.scheme.kind)[stored.codes.long()] * scales
    elif stored.offsets is None:
        got = (stored.codes.float() - (1 << (stored.scheme.bits - 1))) * scales
    else:
        got = stored.codes.float() * scales + stored.offsets[:, index]
    assert torch.equal(got, values)


def test_a_format_that_is_not_known_is_refused_by_name(tmp_path):
    copy(HERE / "hf_fp8-block64-qwen2", tmp_path, {"quant_method": "vptq"})
    with pytest.raises(UnsupportedError, match="vptq"):
        open_checkpoint(tmp_path)


def copy(folder, to, quantization=None, change=lambda tensors: tensors):
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "quantization_config": quantization or config["quantization_config"]}))
    name = next(p for p in folder.glob("*.safetensors") if p.name != "expected.safetensors")
    save_file(change(load_file(name)), to / "model.safetensors")


@pytest.mark.parametrize("part", ["scales", "qzeros"])
def test_a_missing_part_is_named(tmp_path, part):
    name = f"model.layers.0.self_attn.q_proj.{part}"
    copy(HERE / "autoawq-gemv-w4g128-llama", tmp_path, change=lambda t: {k: v for k, v in t.items() if k != name})
    with pytest.raises(CheckpointError, match=part):
        open_checkpoint(tmp_path).read("model.layers.0.self_attn.q_proj.weight")


def test_a_number_of_bits_that_does_not_fit_is_refused(tmp_path):
    folder = HERE / "autogptq-4bit-g32-asym-desc_act-llama"
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    copy(folder, tmp_path, {**config, "bits": 8})
    with pytest.raises(CheckpointError, match="q_proj"):
        open_checkpoint(tmp_path).read("model.layers.0.self_attn.q_proj.weight")
