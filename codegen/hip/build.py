"""HIP C++: kernels rendered for AMD GPUs, beside Triton's, by the same contract: signature, constants and grid.

One source serves waves of 32 and 64 lanes, and this CPU, by emulation, for tests. clang of the pinned zig is the compiler: no ROCm, no headers.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LlmcError
from ...toolchain.c import toolchain
from ...toolchain.kernel_cache import cached, keep
from ..templates import environment

if TYPE_CHECKING:
    from ..triton.plan import Kernel
    from ..triton.target import GpuTarget

TEMPLATES = Path(__file__).parent / "templates"
HEADERS = ("gpu.h", "emulator.h")
TYPES = {
    "*fp32": "float",
    "*bf16": "bf16",
    "*fp16": "f16",
    "*fp8e4nv": "e4m3",
    "*i8": "i8",
    "*u8": "u8",
    "*i16": "i16",
    "*i32": "int",
    "*i64": "i64",
    "i32": "int",
}
SAME = {"norm", "write_cache", "largest", "argmax", "draw"}
"""Kernels that take the place of Triton's: a row, or a head of a token, has one order of sums whatever the batch."""
ACTIVATIONS = ("", "silu", "gelu_tanh", "quick_gelu", "relu", "relu2", "sigmoid", "tanh")
"""What the products of few rows end in."""
FLAGS = (
    "-x",
    "hip",
    "--cuda-device-only",
    "--no-gpu-bundle-output",
    "-nogpulib",
    "-nogpuinc",
    "-fuse-cuid=none",
    "-mcode-object-version=5",
    "-O3",
    "-ffp-contract=off",
    "-w",
)
LLD = '#!/bin/sh\nshift 2\nexec "{python}" -m ziglang ld.lld "$@"\n'


def headers() -> dict[str, str]:
    """What the sources include, by file name."""
    return {name: (TEMPLATES / name).read_text() for name in HEADERS}


def render(kernel: Kernel) -> str:
    """A kernel's source."""
    types = [TYPES[t] for t in kernel.signature]
    arguments = ", ".join(f"argument{{p[{i}]}}" for i in range(len(types)))
    template = environment(TEMPLATES).get_template(f"{kernel.function}.hip.j2")
    text = template.render(name=kernel.name, warps=kernel.warps, types=types, number=_number, **dict(kernel.constants))
    return f"{text}EMULATED({kernel.name}, {kernel.warps} * WAVE, {arguments})\n"


def _number(value: float) -> str:
    return f"{float(value)!r}f"


def compiled(kernels: Sequence[Kernel], target: GpuTarget, use_cache: bool = True) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Each kernel's code object and its facts, as `triton.build.compiled` has them. The same kernels, target and zig give the same bytes."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        binaries = pool.map(lambda k: _compile(k, target, use_cache), kernels)
        return {
            k.name: (binary, {"symbol": k.name, "shared": 0, "warps": k.warps, "scratch": 0})
            for k, binary in zip(kernels, binaries, strict=True)
        }


def _compile(kernel: Kernel, target: GpuTarget, use_cache: bool) -> bytes:
    texts = {**headers(), "kernel.hip": render(kernel)}
    flags = [*FLAGS, f"--offload-arch={target.arch}", f"-DWAVE={target.warp}"]
    identity = hashlib.sha256(repr((toolchain(), flags, sorted(texts.items()))).encode()).hexdigest()
    kept = cached(f"{identity}.hsaco") if use_cache else None
    if kept is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="llmc-hip-") as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text)
        linker = Path(folder) / "bin" / "lld"
        linker.parent.mkdir()
        linker.write_text(LLD.format(python=sys.executable))
        linker.chmod(0o755)
        environment = {"PATH": f"{linker.parent}:{os.environ.get('PATH', '')}", "ZIG_LOCAL_CACHE_DIR": f"{folder}/zig"}
        _run(["clang", *flags, "-c", "kernel.hip", "-o", "kernel.hsaco"], folder, environment, kernel.function, target.name)
        binary = (Path(folder) / "kernel.hsaco").read_bytes()
    if use_cache:
        keep(f"{identity}.hsaco", binary)
    return binary


def emulation(sources: dict[str, str]) -> str:
    """All kernels as one translation unit of C++; each is then `emulate_NAME(size, arguments)`."""
    parts = ['#define EMULATE\n#include "gpu.h"\n']
    for i, name in enumerate(sorted(n for n in sources if n.endswith(".hip"))):
        parts.append(f'namespace kernel{i} {{\n#undef THREADS\n#include "{name}"\n}}\n')
    return "".join(parts)


def emulated(sources: dict[str, str], wave: int) -> bytes:
    """A shared object that runs the kernels of `sources` (and the headers) on this CPU, with waves of so many lanes."""
    with tempfile.TemporaryDirectory(prefix="llmc-hip-") as folder:
        for name, text in {**sources, "main.cpp": emulation(sources)}.items():
            (Path(folder) / name).write_text(text)
        command = ["c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-nostdlib++", "-ffp-contract=off", "-w", f"-DWAVE={wave}"]  # fmt: skip
        environment = {"ZIG_LOCAL_CACHE_DIR": f"{folder}/zig"}
        _run([*command, "main.cpp", "-o", "out.so", "-lm"], folder, environment, "the emulation", "this CPU")
        return (Path(folder) / "out.so").read_bytes()


def _run(command: Iterable[str], folder: str, environment: dict[str, str], what: str, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", *command], cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise LlmcError(
            f"{what} does not compile for {where}:\n{re.sub(r'(?m)^.*/llmc-hip-[^/]*/', '', done.stderr)[-4000:]}",
            "this is a bug in llmc: please report it with the model's config",
        )
