"""The aarch64 level, cross-compiled and run under qemu: its logits are those of this machine, to the bit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import llmc
import numpy as np
import pytest
from harnessed import build_and_run, expected
from models import save_checkpoint

QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
ZIG = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-mcpu=generic+v8_2a+dotprod+fullfp16", "-static"]
FLAGS = ["-std=gnu11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-w"]


@pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed: the aarch64 kernels are built but not run")
@pytest.mark.parametrize(("key", "quant"), [("qwen3", "none"), ("llama", "int8"), ("llama", "int4:g32/int8")])
def test_same_bits_as_here(key: str, quant: str, tmp_path: Path) -> None:
    source = save_checkpoint(key, tmp_path / "model")
    llmc.compile(str(source), tmp_path / "m.llmc", quant=quant, dtype="bf16", target="cpu:native")
    rng = np.random.default_rng()
    runs = [rng.integers(3, 250, n).tolist() for n in (1, 23)]
    got = build_and_run(tmp_path / "m.llmc", runs, tmp_path / "build", [*ZIG, *FLAGS], [str(QEMU)], threads=2)
    for a, b in zip(got, expected(tmp_path / "m.llmc", runs), strict=True):
        assert np.array_equal(a, b), f"{np.abs(a - b).max()} at token ids {runs}"
