"""GPU targets: what a chip is, and how kernels are shaped for it."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError, nearest


@dataclass(frozen=True)
class GpuTarget:
    """`family` cuda or rocm; `arch` as its vendor writes it; `warp` threads; `shared_bytes` a block may use."""

    family: str
    arch: str
    warp: int
    shared_bytes: int

    @property
    def name(self) -> str:
        return f"{self.family}:{self.arch}"

    @property
    def extension(self) -> str:
        return "cubin" if self.family == "cuda" else "hsaco"


KiB = 1024
TARGETS = {
    t.name: t
    for t in (
        GpuTarget("cuda", "sm_80", 32, 163 * KiB),
        GpuTarget("cuda", "sm_86", 32, 99 * KiB),
        GpuTarget("cuda", "sm_89", 32, 99 * KiB),
        GpuTarget("cuda", "sm_90", 32, 227 * KiB),
        GpuTarget("cuda", "sm_100", 32, 227 * KiB),
        GpuTarget("cuda", "sm_120", 32, 99 * KiB),
        GpuTarget("rocm", "gfx90a", 64, 64 * KiB),
        GpuTarget("rocm", "gfx942", 64, 64 * KiB),
        GpuTarget("rocm", "gfx950", 64, 160 * KiB),
        GpuTarget("rocm", "gfx1100", 32, 64 * KiB),
        GpuTarget("rocm", "gfx1201", 32, 64 * KiB),
    )
}
"""Shared memory: CUDA programming guide, table of compute capabilities; AMD's ISA documents (LDS a work-group)."""


def gpu_target(text: str) -> GpuTarget:
    """Raises UsageError naming the nearest known one."""
    if text not in TARGETS:
        raise UsageError(f"unknown target {text!r}", nearest(text, list(TARGETS)))
    return TARGETS[text]
