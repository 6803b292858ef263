"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: one small model always, more with --sanitize."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import llmc
import numpy as np
import pytest
from harnessed import build_and_run, expected
from llmc.runtime.cpu_info import available_levels
from models import save_checkpoint

FLAGS = ["-std=gnu11", "-O1", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-w"]
GCC = [
    "gcc",
    "-march=x86-64-v3",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-sanitize=alignment",
    *FLAGS,
]
ZIG = [
    sys.executable,
    "-m",
    "ziglang",
    "cc",
    "-target",
    "x86_64-linux-gnu.2.28",
    "-mcpu=x86_64_v3",
    "-fsanitize=undefined",
    "-fsanitize-trap=undefined",
    "-fno-sanitize=alignment",
    *FLAGS,
]
FEW = [("llama", "int4:g32/int8"), ("gpt_oss", "none")]
MANY = [(k, q) for k in ("qwen3", "gemma2", "gpt_neox", "mixtral", "gpt2") for q in ("none", "int4", "int8")]
MANY += [("glm_moe_dsa", "none"), ("inkling_text", "none")]


def cases(config: pytest.Config) -> list[tuple[str, str]]:
    return FEW + (MANY if config.getoption("--sanitize") else [])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(metafunc.config), ids=lambda c: "-".join(c).replace("/", "_").replace(":", "_"))


def check(case: tuple[str, str], compiler: list[str], folder: Path) -> None:
    source = save_checkpoint(case[0], folder / "model")
    llmc.compile(str(source), folder / "m.llmc", quant=case[1], dtype="bf16", target="cpu:native")
    rng = np.random.default_rng()
    runs = [rng.integers(3, 250, n).tolist() for n in (2, 37)]
    got = build_and_run(folder / "m.llmc", runs, folder / "build", compiler, [], threads=2)
    for a, b in zip(got, expected(folder / "m.llmc", runs), strict=True):
        assert np.array_equal(a, b), "the sanitized build computes something else"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.skipif("x86-64-v3" not in available_levels(), reason="this CPU does not run x86-64-v3")
def test_address_sanitizer(case: tuple[str, str], tmp_path: Path) -> None:
    check(case, GCC, tmp_path)


@pytest.mark.skipif("x86-64-v3" not in available_levels(), reason="this CPU does not run x86-64-v3")
def test_undefined_behaviour_sanitizer(case: tuple[str, str], tmp_path: Path) -> None:
    check(case, ZIG, tmp_path)
