"""Checkpoints that fix the steps of their key/value cache: the artifact stores keys and values as they say."""

from __future__ import annotations

import json

import pytest
import torch
from llmc.export import export
from llmc.runtime.api import load
from safetensors.torch import load_file, save_file
from server import tiny

K_SCALE, V_SCALE = 0.05, 0.021  # small enough that some values are clipped


def rounding_attention(kind):
    """transformers' attention with keys and values rounded as a cache with those steps holds them."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def store(x, step):
        if kind == "int":
            return (x / step).round().clamp(-128, 127) * step
        return (x / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step

    def forward(module, query, key, value, *args, **kwargs):
        return sdpa_attention_forward(module, query, store(key, K_SCALE), store(value, V_SCALE), *args, **kwargs)

    return forward


@pytest.mark.parametrize("kind", ["float", "int"])
def test_fixed_steps_of_the_cache_are_kept(tmp_path, kind):
    import llmc
    from transformers import AttentionInterface, AutoModelForCausalLM

    source = tmp_path / "checkpoint"
    export(str(tiny.checkpoint()), source, "compressed-tensors", quant="int8:channel/f32")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = {
        "num_bits": 8,
        "type": kind,
        "strategy": "tensor",
        "dynamic": False,
        "symmetric": True,
    }
    (source / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.k_scale"] = torch.tensor([K_SCALE])
        tensors[f"model.layers.{layer}.self_attn.v_scale"] = torch.tensor([V_SCALE])
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    report = llmc.compile(str(source), tmp_path / "a.llmc", target=("cpu:native",))
    wide = llmc.compile(str(source), tmp_path / "b.llmc", kv_dtype="f32", target=("cpu:native",))
    assert report.conformance["max_abs"] > 10 * wide.conformance["max_abs"]

    export(str(source), tmp_path / "dense", "dense")
    AttentionInterface.register("rounded", rounding_attention(kind))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32, attn_implementation="rounded").eval()
    ids = [5, 80, 200, 17, 300, 41, 99, 150, 222, 7, 31, 64]
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
    with load(tmp_path / "a.llmc") as artifact:
        got = torch.from_numpy(artifact.logits([ids])[0])
    with load(tmp_path / "b.llmc") as artifact:
        unrounded = torch.from_numpy(artifact.logits([ids])[0])
    # queries and probabilities are bfloat16 there, and a key near the middle of two codes may go to either
    assert float((got - wanted).abs().max()) < 1e-2 * float(wanted.abs().max())
    assert float((got - wanted).norm()) < 0.25 * float((got - unrounded).norm())
