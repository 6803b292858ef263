"""Other people's tools load what `llmc export` writes, and compute what its dense weights give (`make test-interop`)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from llmc.conformance import divergence
from llmc.export import export
from models import original_logits
from server import tiny

IDS = [5, 9, 33, 77, 120, 200, 250, 300, 41, 17, 99, 3, 8, 64, 128, 256]
CASES = [  # the divergence allowed, in nats: where activations are rounded as well it is theirs
    ("gptq", "int4:g32", 1e-5), ("gptq", "int4:g32:asym", 1e-5), ("gptq", "int8:g32", 1e-5), ("awq", "int4:g32:asym", 1e-5),
    ("compressed-tensors", "int4:g32", 1e-6), ("compressed-tensors", "int8", 5e-3), ("compressed-tensors", "fp8", 2e-2),
    ("gguf", "int4:g32", 5e-3), ("gguf", "int4:g64:asym", 5e-3), ("gguf", "int8:g32", 5e-3),
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    where = tiny.save_model(tmp_path_factory.mktemp("interop"), hidden_size=128, intermediate_size=256, head_dim=32)
    tiny.save_tokenizer(where)
    return str(where)


@pytest.mark.parametrize(("form", "quant", "allowed"), CASES)
def test_other_tools_compute_the_same(interop_python, source, tmp_path, form, quant, allowed):
    export(source, tmp_path / "x", form, quant=quant)
    plain = () if form == "gguf" else ("*embed*=f32", "lm_head=f32")
    export(source, tmp_path / "dense", "dense", quant=quant, scheme=plain)
    worker = str(Path(__file__).parent / "interop_worker.py")
    out = tmp_path / "logits.npy"
    subprocess.run([interop_python, worker, form, str(tmp_path / "x"), json.dumps(IDS), str(out)], check=True)
    wanted = original_logits(tmp_path / "dense", IDS)
    assert divergence(wanted, np.load(out)).mean() < allowed
    assert divergence(original_logits(source, IDS), wanted).mean() > 1e-6, "nothing was quantized"
