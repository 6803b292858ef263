"""GPU targets: what a chip is, and how kernels are shaped for it."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UsageError, nearest


@dataclass(frozen=True)
class GpuTarget:
    """`family` cuda or rocm; `arch` as its vendor writes it; `warp` threads; `shared_bytes` a block may use; `processors`, the
    multiprocessors of the largest common chip of its kind, which grids are shaped for."""

    family: str
    arch: str
    warp: int
    shared_bytes: int
    processors: int

    @property
    def name(self) -> str:
        return f"{self.family}:{self.arch}"

    @property
    def generation(self) -> int:
        """80, 90, … of a CUDA chip; 0 of another."""
        return int(self.arch[3:]) if self.family == "cuda" else 0

    @property
    def overlaps(self) -> bool:
        """Whether a launch may begin while the one before it ends, and memory can be asked for ahead in bulk."""
        return self.generation >= 90

    @property
    def copies_tiles(self) -> bool:
        """Whether it has a unit that copies tiles from memory by itself."""
        return self.generation >= 90

    @property
    def multiplies_fp8(self) -> bool:
        """Whether its matrix units take e4m3 as the checkpoints of others hold it."""
        return self.generation >= 89

    @property
    def extension(self) -> str:
        return "cubin" if self.family == "cuda" else "hsaco"


KiB = 1024
TARGETS = {
    t.name: t
    for t in (
        GpuTarget("cuda", "sm_80", 32, 163 * KiB, 108),
        GpuTarget("cuda", "sm_86", 32, 99 * KiB, 84),
        GpuTarget("cuda", "sm_89", 32, 99 * KiB, 142),
        GpuTarget("cuda", "sm_90", 32, 227 * KiB, 132),
        GpuTarget("cuda", "sm_100", 32, 227 * KiB, 148),
        GpuTarget("cuda", "sm_120", 32, 99 * KiB, 170),
        GpuTarget("rocm", "gfx90a", 64, 64 * KiB, 110),
        GpuTarget("rocm", "gfx942", 64, 64 * KiB, 304),
        GpuTarget("rocm", "gfx950", 64, 160 * KiB, 256),
        GpuTarget("rocm", "gfx1100", 32, 64 * KiB, 96),
        GpuTarget("rocm", "gfx1201", 32, 64 * KiB, 64),
    )
}
"""Shared memory: CUDA programming guide, table of compute capabilities; AMD's ISA documents (LDS a work-group); processors from the vendors' data sheets."""


def gpu_target(text: str) -> GpuTarget:
    """Raises UsageError naming the nearest known one."""
    if text not in TARGETS:
        raise UsageError(f"unknown target {text!r}", nearest(text, list(TARGETS)))
    return TARGETS[text]
