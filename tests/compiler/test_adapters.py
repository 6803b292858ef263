"""LoRA adapters in PEFT's layout, merged at compile time; and models that are in memory."""

from __future__ import annotations

import json
import math

import llmc
import numpy as np
import pytest
import torch
from llmc.compiler.adapters import open_adapter, parse_lora
from llmc.errors import CheckpointError, UnsupportedError, UsageError
from models import make_config, original_logits, randomize
from safetensors.torch import load_file, save_file

TARGETS = ("self_attn.q_proj", "mlp.down_proj")


def write_adapter(folder, source, *, rank=4, changes=(), seed=0, **config):
    """An adapter for two modules of each layer; returns what it adds to each weight at lora_alpha 8."""
    generator = torch.Generator().manual_seed(seed)
    weights, tensors, added = load_file(source / "model.safetensors"), {}, {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            a = torch.randn(rank, weight.shape[1], generator=generator) * 0.1
            b = torch.randn(weight.shape[0], rank, generator=generator) * 0.1
            tensors[f"base_model.model.{module}.lora_A.weight"], tensors[f"base_model.model.{module}.lora_B.weight"] = a, b
            added[name] = b @ a
    folder.mkdir()
    save_file({**tensors, **dict(changes)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none", **config}
        )
    )
    return added


def test_adapters_are_added_to_their_weights(checkpoint, tmp_path, random):
    source = checkpoint("llama")
    first = write_adapter(tmp_path / "one", source)
    second = write_adapter(tmp_path / "two", source, rank=2, seed=1, use_rslora=True)
    weights = load_file(source / "model.safetensors")
    for added, factor in ((first, 8 / 4), (second, 0.5 * 8 / math.sqrt(2))):
        for name, delta in added.items():
            weights[name] = weights[name] + factor * delta
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    (by_hand / "config.json").write_text((source / "config.json").read_text())
    save_file(weights, by_hand / "model.safetensors", {"format": "pt"})
    out = tmp_path / "m.llmc"
    llmc.compile(source, out, target="cpu:native", lora=(str(tmp_path / "one"), f"{tmp_path / 'two'}=0.5"))
    ids = random.integers(3, 256, 20).tolist()
    with llmc.load(out) as model:
        got, recipe = model.logits(ids), model.artifact.manifest["recipe"]
    wanted = original_logits(by_hand, ids)
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(got - original_logits(source, ids)).max() > 1e-2, "the adapters changed nothing"
    assert [a["scale"] for a in recipe["lora"]] == [1.0, 0.5] and str(tmp_path) not in json.dumps(recipe)


def test_an_adapter_for_another_model_is_refused(checkpoint, tmp_path):
    write_adapter(tmp_path / "a", checkpoint("llama", hidden_size=32))
    with pytest.raises(CheckpointError, match="another model"):
        llmc.compile(checkpoint("llama"), tmp_path / "m.llmc", target="cpu:native", lora=str(tmp_path / "a"))
    assert not (tmp_path / "m.llmc").exists()


@pytest.mark.parametrize(
    ("config", "error"),
    [({"use_dora": True}, UnsupportedError), ({"peft_type": "IA3"}, UnsupportedError), ({"bias": "all"}, UnsupportedError)],
    ids=str,
)
def test_other_kinds_are_refused_by_name(checkpoint, tmp_path, config, error):
    write_adapter(tmp_path / "a", checkpoint("llama"), **config)
    with pytest.raises(error):
        open_adapter(str(tmp_path / "a"))


def test_damaged_adapters_are_checkpoint_errors(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="no LoRA adapter"):
        open_adapter(str(tmp_path / "none"))
    write_adapter(tmp_path / "a", checkpoint("llama"))
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        open_adapter(str(tmp_path / "a"))
    with pytest.raises(UsageError, match="scale"):
        parse_lora("folder=much")


def test_a_model_in_memory_compiles(tmp_path, random):
    from transformers import LlamaConfig, LlamaForCausalLM

    class OwnConfig(LlamaConfig):
        model_type = "own_llama"

    class OwnModel(LlamaForCausalLM):
        config_class = OwnConfig

    config = OwnConfig(**{k: v for k, v in make_config("llama").to_dict().items() if k != "model_type"})
    model = OwnModel._from_config(config).eval()
    randomize(model, 0)
    report = llmc.compile(model, out=tmp_path / "m.llmc", target="cpu:native", dtype="f32")
    assert report.conformance["top1"] == 1.0
    ids = random.integers(3, 256, 12).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    with llmc.load(tmp_path / "m.llmc") as artifact:
        assert np.abs(artifact.logits(ids) - wanted).max() < 1e-4 * np.abs(wanted).max()
    with pytest.raises(UsageError, match="neither a path"):
        llmc.compile(torch.nn.Linear(2, 2), out=tmp_path / "n.llmc")
