"""CUDA C++: kernels rendered for NVIDIA GPUs, beside Triton's, by the same contract: signature, constants and grid; and with their bits.

clang of the pinned zig makes PTX of them and Triton's assembler machine code: no CUDA toolkit, no headers. The same source runs on this CPU, by
emulation, for tests.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EnvironmentLacks, LlmcError
from ...toolchain.c import toolchain
from ...toolchain.kernel_cache import cached, keep
from ..hip.build import TEMPLATES as SHARED_TEMPLATES
from ..hip.build import headers, rendered, run_zig

if TYPE_CHECKING:
    from ..triton.plan import Kernel
    from ..triton.target import GpuTarget

TEMPLATES = Path(__file__).parent / "templates"
FLAGS = ("-x", "cuda", "--cuda-device-only", "-nocudalib", "-nocudainc", "--no-cuda-version-check", "-fuse-cuid=none", "-fno-jump-tables", "-O3", "-ffp-contract=off", "-w", "-DWAVE=32")


def render(kernel: Kernel) -> str:
    """A kernel's source: from a template of its own, or from the one that AMD's GPUs have."""
    own = (TEMPLATES / f"{kernel.function}.cu.j2").exists()
    return rendered(kernel, TEMPLATES, "cu") if own else rendered(kernel, SHARED_TEMPLATES, "hip")


def compiled(kernels: Sequence[Kernel], target: GpuTarget, use_cache: bool = True) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Each kernel's binary and its facts, as `triton.build.compiled` has them. The same kernels, target, zig and Triton give the same bytes."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        binaries = pool.map(lambda k: _compile(k, target, use_cache), kernels)
        return {
            k.name: (binary, {"symbol": k.name, "shared": dict(k.constants).get("SHARED", 0), "warps": k.warps, "scratch": 0})
            for k, binary in zip(kernels, binaries, strict=True)
        }


def assembler(target: GpuTarget) -> Path:
    """The ptxas that Triton's package carries for a chip."""
    found = find_spec("triton")
    if found is None or not found.submodule_search_locations:
        raise EnvironmentLacks("GPU targets need the package triton", "install the `compile` extra")
    name = "ptxas-blackwell" if target.generation >= 100 else "ptxas"
    return Path(found.submodule_search_locations[0]) / "backends" / "nvidia" / "bin" / name


def _compile(kernel: Kernel, target: GpuTarget, use_cache: bool) -> bytes:
    texts = {**headers(), "kernel.cu": render(kernel)}
    flags = [*FLAGS, f"--cuda-gpu-arch={target.arch}"]
    identity = hashlib.sha256(repr((toolchain(), version("triton"), flags, sorted(texts.items()))).encode()).hexdigest()
    kept = cached(f"{identity}.cubin") if use_cache else None
    if kept is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="llmc-cuda-") as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text)
        run_zig(["clang", *flags, "-S", "kernel.cu", "-o", "kernel.ptx"], folder, {"ZIG_LOCAL_CACHE_DIR": f"{folder}/zig"}, kernel.function, target.name)
        done = subprocess.run([assembler(target), f"-arch={target.arch}", "kernel.ptx", "-o", "kernel.cubin"], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise LlmcError(f"{kernel.function} does not assemble for {target.name}:\n{done.stderr[-4000:]}", "this is a bug in llmc: please report it with the model's config")
        binary = (Path(folder) / "kernel.cubin").read_bytes()
    if use_cache:
        keep(f"{identity}.cubin", binary)
    return binary
