"""The AMX level's machine code: the bits that x86-64-v3 gives. Machines without AMX run it too, tile instructions by tests/codegen/tiles.c."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llmc.runtime.cpu_info import available_levels
from llmc.toolchain.c import build
from schedules import draw

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    "x86-64-v4" not in available_levels(), reason="this CPU does not run x86-64-v4, whose instructions the AMX level has"
)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiles") / "tiles.so"
    path.write_bytes(build({"tiles.c": (HERE / "tiles.c").read_text()}, "x86-64-v4", main="tiles.c"))
    return path


@pytest.mark.parametrize(
    ("key", "changes", "options"),
    [
        ("llama", {}, {}),
        ("llama", {"head_dim": 80, "num_attention_heads": 8, "num_key_value_heads": 1}, {"quant": "int8:g64/int8"}),
        ("llama", {"hidden_size": 80, "num_attention_heads": 40, "num_key_value_heads": 1}, {"quant": "int4:g32:asym/int8"}),
        ("llama", {"hidden_size": 2200, "num_hidden_layers": 1}, {"quant": "int4:g32/int8"}),
        ("llama", {"hidden_size": 2200, "num_hidden_layers": 1}, {"quant": "int4:g64:asym/bf16"}),
        ("llama", {}, {"quant": "int8:g32/int8"}),
        ("llama", {}, {"quant": "int8/int8"}),
        ("llama", {"head_dim": 64}, {"kv_dtype": "int8"}),
        (
            "llama",
            {"head_dim": 80, "num_attention_heads": 8, "num_key_value_heads": 1},
            {"kv_dtype": "int16", "quant": "int8:g64/int8"},
        ),
        ("gpt_oss", {}, {"kv_dtype": "int16", "quant": "int4"}),
        ("glm_moe_dsa", {}, {"kv_dtype": "int16"}),
        ("gpt_oss", {}, {"quant": "int4"}),
        ("mixtral", {}, {"quant": "int8:g64/int8"}),
        ("qwen3_moe", {}, {"quant": "int4:g64:asym/int8"}),
        ("gemma2", {}, {}),
        ("glm_moe_dsa", {}, {}),
    ],
    ids=str,
)
def test_amx_gives_the_bits_of_the_other_levels(key, changes, options, checkpoint, artifact, random, tiles):
    targets = ("cpu:x86-64-v3", "cpu:x86-64-amx")
    path = artifact(checkpoint(key, dtype=torch.bfloat16, **changes), target=targets, **{"dtype": "bf16", **options})
    done = subprocess.run(
        [sys.executable, str(HERE / "amx_process.py"), str(path)],
        input=json.dumps([draw(random), draw(random, 9)]),
        text=True,
        capture_output=True,
        env={**os.environ, "LD_PRELOAD": str(tiles), "PYTHONPATH": str(HERE.parent)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
