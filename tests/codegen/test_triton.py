"""GPU targets with no GPU: Plans run by Triton's interpreter against the CPU's kernels, and binaries made ahead of time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from interpreted import FLIPS, interpreted
from llmc.codegen.triton.elf import resources, sections
from llmc.codegen.triton.target import TARGETS
from llmc.errors import EnvironmentLacks, UnsupportedError, UsageError
from llmc.runtime.artifact import open_artifact
from llmc.runtime.executors.choose import choose_target
from llmc.toolchain import kernel_cache

CASES = [
    ("llama", {}, 1e-4),
    ("llama", {"quant": "int4:g32", "dtype": "bf16"}, 2e-2),
    ("llama", {"quant": "int4:g64:asym/int8", "dtype": "bf16"}, 2e-2),
    ("llama", {"quant": "int8", "algorithm": "hadamard", "dtype": "bf16"}, 2e-2),
    ("qwen3", {"quant": "fp8", "dtype": "bf16"}, 8e-2),
    ("gemma2", {"quant": "int3:g32", "dtype": "bf16"}, 2e-2),
    ("gpt2", {"quant": "int8:channel/bf16", "dtype": "bf16"}, 2e-2),
    ("gpt_oss", {"dtype": "bf16"}, 4e-2),
    ("mixtral", {"quant": "int4:g32:asym", "dtype": "bf16"}, 4e-2),
    ("bloom", {"quant": "nf4", "dtype": "bf16"}, 2e-2),
]
"""Of the largest logit: float32 sums in other orders; with bfloat16 caches and products, roundings of 2^-8 that fall either way; with e4m3
activations, roundings of 2^-4 (over 60 tokens either side is as far from the unquantized model as the other, 0.055 root mean square)."""


@pytest.mark.parametrize(
    ("key", "options", "tolerance"), CASES, ids=[f"{k}-{o.get('quant', 'none')}-{o.get('algorithm', '')}" for k, o, _ in CASES]
)
def test_a_plan_computes_what_the_cpu_computes(key, options, tolerance, checkpoint, artifact, random, tmp_path):
    path = artifact(checkpoint(key), target=("cpu:native", "cuda:sm_90"), **options)
    interpreted(path, random, tmp_path, tolerance, FLIPS.get(key, 0))


@pytest.mark.parametrize("key", ["llama", "gpt_oss"])
def test_a_token_that_sees_several_splits_has_the_bits_of_a_prefill(key, checkpoint, artifact):
    path = artifact(checkpoint(key), target=("cuda:sm_90",), dtype="bf16")
    worker = Path(__file__).with_name("interpreted_splits.py")
    done = subprocess.run([sys.executable, worker, path, "cuda:sm_90"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {"same": [True] * 3, "rows": 3}


def test_a_product_gives_the_same_sums_in_any_tiles():
    done = subprocess.run([sys.executable, Path(__file__).with_name("interpreted_products.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {name.partition(" ")[0] for name in found} == {"nibbles", "zeros", "gated", "floats", "scaled", "integers"}
    for name, (error, same) in found.items():
        assert error < 1e-5 and same, (name, error, same)


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_120", "rocm:gfx942", "rocm:gfx1201"])
def test_every_kernel_compiles_for_every_kind_of_chip(target, checkpoint, artifact):
    path = artifact(checkpoint("llama"), target=(target,), quant="int4:g32", dtype="bf16")
    with open_artifact(path) as opened:
        (entry,) = opened.manifest["targets"]
        plan = json.loads(opened.read(entry["member"]))
        assert entry["name"] == plan["target"] == target
        for kernel in entry["kernels"]:
            facts = plan["kernels"][kernel["name"]]
            binary = opened.read(f"{entry['member'].rpartition('/')[0]}/{facts['member']}")
            assert sections(binary), kernel["name"]
            assert resources(binary, facts["symbol"])["registers"] == kernel["registers"] > 0
            assert kernel["shared_bytes"] <= TARGETS[target].shared_bytes


def test_inspect_lists_registers_and_shared_memory(checkpoint, artifact, capsys):
    from llmc.cli.main import run

    path = artifact(checkpoint("llama"), target=("cuda:sm_80",), quant="int4:g32", dtype="bf16")
    assert run(["inspect", str(path)]) == 0 and run(["explain", str(path)]) == 0
    out = capsys.readouterr().out
    assert "sm_80 attend: " in out and " registers, " in out and "triton 3" in out
    assert run(["generate", str(path), "--input-ids", "5,6"]) == 5
    assert "cuda" in capsys.readouterr().err


def test_binaries_are_the_same_bytes_wherever_they_are_made(checkpoint, tmp_path, monkeypatch):
    import llmc

    made = []
    for name in ("a", "b/deeper"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        monkeypatch.setattr(kernel_cache, "cache_folder", lambda folder=folder: folder / "kernels")
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        llmc.compile(str(checkpoint("llama")), folder / "m.llmc", target=("cuda:sm_90",), dtype="bf16", weights="none")
        made.append((folder / "m.llmc").read_bytes())
    assert made[0] == made[1]


def test_a_machine_without_the_device_says_what_is_missing(checkpoint, artifact):
    path = artifact(checkpoint("llama"), target=("cuda:sm_90",), quant="int4:g32", dtype="bf16")
    with open_artifact(path) as opened:
        with pytest.raises(EnvironmentLacks, match="cuda"):
            choose_target(opened)
        with pytest.raises(EnvironmentLacks, match="holds no kernels for rocm"):
            choose_target(opened, "rocm")
        with pytest.raises(UsageError, match="unknown target"):
            choose_target(opened, "cudaa")


def test_what_a_gpu_cannot_is_refused_by_name(checkpoint, artifact):
    with pytest.raises(UnsupportedError, match="no kernel"):
        artifact(checkpoint("mamba"), target=("cuda:sm_90",))
    with pytest.raises(UnsupportedError, match="cache"):
        artifact(checkpoint("llama"), target=("cuda:sm_90",), kv_dtype="int8")


def test_a_cubin_runs_on_later_chips_of_its_generation_alone():
    from llmc.runtime.drivers import cuda, hip

    assert cuda.runs("sm_80", "sm_86") and not cuda.runs("sm_86", "sm_80") and not cuda.runs("sm_80", "sm_90")
    assert not cuda.runs("sm_100", "sm_120") and hip.runs("gfx942", "gfx942") and not hip.runs("gfx942", "gfx950")
