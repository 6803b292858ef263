"""AMX kernels with tiles in plain code: the bits that x86-64-v3 gives, on machines without AMX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llmc.codegen.cpu.render import render
from llmc.compiler.ir.text import parse_graph
from llmc.runtime.artifact import Artifact
from llmc.runtime.cpu_info import available_levels
from llmc.toolchain.c import EMULATED_AMX, build
from schedules import draw, load, same_bits_however_computed

pytestmark = pytest.mark.skipif("x86-64-v4" not in available_levels(), reason="the emulation is built for x86-64-v4")


@pytest.fixture
def as_amx(monkeypatch):
    """From now on kernels are those of the AMX level."""

    def switch(path):
        kept = Artifact.read
        with load(path) as model:
            source = render(parse_graph(model.artifact.read("model.ir").decode()), model.artifact.manifest["model"]["kv_dtype"])
        kernels = build(source.sources, EMULATED_AMX)
        monkeypatch.setattr(Artifact, "read", lambda self, name: kernels if name.endswith(".so") else kept(self, name))

    return switch


@pytest.mark.parametrize(
    ("key", "changes", "options"),
    [
        ("llama", {}, {}),
        ("llama", {"head_dim": 80, "num_attention_heads": 8, "num_key_value_heads": 1}, {"quant": "int8:g64/int8"}),
        ("llama", {"hidden_size": 80, "num_attention_heads": 40, "num_key_value_heads": 1}, {"quant": "int4:g32:asym/int8"}),
        ("llama", {"head_dim": 64}, {"kv_dtype": "int8"}),
        ("gpt_oss", {}, {"quant": "int4"}),
        ("mixtral", {}, {"quant": "int8:g64/int8"}),
        ("qwen3_moe", {}, {"quant": "int4:g64:asym/int8"}),
        ("gemma2", {}, {}),
        ("glm_moe_dsa", {}, {}),
    ],
    ids=str,
)
def test_amx_gives_the_bits_of_the_other_levels(key, changes, options, checkpoint, artifact, random, as_amx):
    path = artifact(checkpoint(key, dtype=torch.bfloat16, **changes), target=("cpu:x86-64-v3",), **{"dtype": "bf16", **options})
    sequences = [draw(random), draw(random, 9)]
    with load(path) as model:
        expected = model.logits(sequences)
    as_amx(path)
    with load(path) as model:
        for got, wanted in zip(model.logits(sequences), expected, strict=True):
            assert got.tobytes() == wanted.tobytes(), f"AMX differs by {np.abs(got - wanted).max()}"
    same_bits_however_computed(path, sequences)
