"""Building: C to a shared object for each instruction-set level, by the pinned zig or a compiler of the user's choice."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import EnvironmentLacks, LlmcError
from .kernel_cache import cached, keep


@dataclass(frozen=True)
class Level:
    """An instruction-set level: flags for clang (zig) and for gcc."""

    name: str
    zig: tuple[str, ...]
    gcc: tuple[str, ...]


_V4 = ("-mprefer-vector-width=512",)
LEVELS = {
    level.name: level
    for level in (
        Level("x86-64-v3", ("-target", "x86_64-linux-gnu.2.28", "-mcpu=x86_64_v3"), ("-march=x86-64-v3",)),
        Level(
            "x86-64-v4",
            ("-target", "x86_64-linux-gnu.2.28", "-mcpu=x86_64_v4+avx512vnni+avx512bf16", *_V4),
            ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", *_V4),
        ),
        Level(
            "x86-64-amx",
            (
                "-target",
                "x86_64-linux-gnu.2.28",
                "-mcpu=x86_64_v4+avx512vnni+avx512bf16+amx_tile+amx_int8+amx_bf16",
                "-DLLMC_AMX",
                *_V4,
            ),
            ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16", "-DLLMC_AMX", *_V4),
        ),
        Level(
            "aarch64",
            ("-target", "aarch64-linux-gnu.2.28", "-mcpu=generic+v8_2a+dotprod+fullfp16"),
            ("-march=armv8.2-a+dotprod+fp16",),
        ),
    )
}
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-g0",
    "-w",
)


def toolchain(cc: str = "") -> str:
    """What built the kernels, for the manifest: `ziglang 0.17.1`, or the first line of the compiler's own version."""
    if not cc:
        try:
            return f"ziglang {version('ziglang')}"
        except PackageNotFoundError as error:
            raise EnvironmentLacks(
                "no C compiler: the ziglang package is not installed", "install the `compile` extra, or name a compiler with --cc"
            ) from error
    try:
        out = subprocess.run([*shlex.split(cc), "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentLacks(f"the compiler {cc!r} does not run: {error}", "check --cc") from error
    return out.stdout.splitlines()[0].strip()


def build(sources: dict[str, str], level: str, cc: str = "", *, main: str = "step.c", use_cache: bool = True) -> bytes:
    """Compile the file `main` of the sources for a level; the same sources, level and compiler give the same bytes, in any folder."""
    chosen = LEVELS[level]
    flags = chosen.gcc if cc else chosen.zig
    command = [
        *(shlex.split(cc) if cc else [sys.executable, "-m", "ziglang", "cc"]),
        *flags,
        *FLAGS,
        *(() if cc else ("-Wl,--build-id=none", "-s")),
    ]
    identity = hashlib.sha256(repr((toolchain(cc), flags, FLAGS, bool(cc), main, sorted(sources.items()))).encode()).hexdigest()
    kept = cached(f"{identity}.so") if use_cache else None
    if kept is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="llmc-build-") as folder:
        for name, text in sources.items():
            (Path(folder) / name).write_text(text)
        environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(Path(folder) / "zig"), "SOURCE_DATE_EPOCH": "0"}
        try:
            done = subprocess.run(
                [*command, "-o", "out.so", main, "-lpthread"], cwd=folder, capture_output=True, text=True, env=environment
            )
        except OSError as error:
            raise EnvironmentLacks(f"the compiler {command[0]!r} does not run: {error}", "check --cc") from error
        if done.returncode:
            raise LlmcError(
                f"the generated code for {chosen.name} does not compile:\n{done.stderr[-4000:]}",
                "this is a bug in llmc: please report it with the model's config",
            )
        binary = (Path(folder) / "out.so").read_bytes()
    if use_cache:
        keep(f"{identity}.so", binary)
    return binary
