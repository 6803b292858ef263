"""How products and attention are cut into tiles on a chip: measured on an H200 where it says so, else what fits."""

from __future__ import annotations

from dataclasses import dataclass

from .target import GpuTarget


@dataclass(frozen=True)
class Tile:
    """For at most `most` rows (0: any number): tiles of bn outputs by bm rows, bk of K at a time, `stages` of them on the way. `programs`: the
    kernel that copies tiles by descriptors, with so many programs; `flat`: with one loop over tiles and K."""

    most: int
    bn: int
    bm: int
    bk: int
    warps: int
    stages: int
    programs: int = 0
    flat: bool = False


def float_tiles(target: GpuTarget, n: int, k: int, kind: str, *, aligned: bool, residual: bool) -> list[Tile]:
    """Tiles of a product with a weight [n, k] of a float type, for growing numbers of rows. aligned: rows of the input lie on 16 bytes.

    Few rows: what counts is bytes on the way to every multiprocessor, so narrow tiles where there are few outputs (H200, 1 row of
    4096×14336: 30.8 µs with 32 outputs a program, 32.4 with 64; of 28672×4096: 56.7 with 64). Bits are those of any other tile: on an
    H200 the matrix instructions of a warp and of four give the same sums. On generation 100 that is not known: 64 outputs everywhere.
    """
    if kind == "f32":
        return [Tile(16, 64, 16, 32, 4, _stages(target, 80, 32, 4, 3)), Tile(0, 64, 64, 32, 4, _stages(target, 128, 32, 4, 3))]
    if target.family != "cuda":
        return [Tile(16, 64, 16, 64, 4, 2), Tile(64, 64, 64, 64, 4, 2), Tile(0, 128, 128, 32, 8, 2)]
    half = 2 if kind == "f8" else 1  # an 8-bit tile of the same bytes has twice the depth
    narrow = -(-n // 64) < target.processors and target.generation != 100
    wide = -(-n // 64) >= 2 * target.processors
    tiles = []
    for most in (8, 16):
        bn, bk, deep = (32, 256, 6) if narrow else (64, 128, 4 if wide else 6)
        tiles.append(Tile(most, bn, most, bk * half, 4, _stages(target, bn + most, bk, 2, deep)))
    tiles.append(Tile(32, 64, 32, 128 * half, 4, _stages(target, 96, 128, 2, 5)))
    tiles.append(Tile(64, 128, 64, 64 * half, 4, _stages(target, 192, 64, 2, 4)) if wide else Tile(64, 64, 32, 128 * half, 4, _stages(target, 96, 128, 2, 5)))
    if not (target.copies_tiles and aligned) or target.shared_bytes < 160 * 1024:
        return [*tiles, Tile(0, 128, 128, 32 * half, 8, _stages(target, 256, 32, 2, 4))]
    tiles.append(Tile(1024, 128, 128, 64 * half, 4, 4, target.processors))
    flat = not residual and n >= 64 * target.processors
    return [*tiles, Tile(0, 128, 256, 64 * half, 8, 3, target.processors, flat)]


def _stages(target: GpuTarget, rows: int, bk: int, element: int, most: int) -> int:
    """How many tiles of `rows` rows fit into nine tenths of the shared memory, two at least."""
    return max(2, min(most, int(0.9 * target.shared_bytes) // (rows * bk * element)))


def attention_rows(target: GpuTarget, kind: str) -> int:
    """Rows (tokens by heads that share a key) of a tile of a prefill's attention."""
    return 16 if kind == "f32" or target.shared_bytes < 99 * 1024 else 64
