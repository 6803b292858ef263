"""How products and attention are cut into tiles on a chip: measured on an H200 where it says so, else what fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .target import GpuTarget, KiB


@dataclass(frozen=True)
class Tile:
    """For at most `most` rows (0: any number): tiles of bn outputs by bm rows, bk of K at a time, `stages` of them on the way. `programs`: the
    kernel that copies tiles by descriptors, with so many programs; `flat`: with one loop over tiles and K; `parts` that its rows end in."""

    most: int
    bn: int
    bm: int
    bk: int
    warps: int
    stages: int
    programs: int = 0
    flat: bool = False
    parts: int = 1


def float_tiles(target: GpuTarget, n: int, k: int, kind: str, *, aligned: bool) -> list[Tile]:
    """Tiles of a product with a weight [n, k] of a float type, for growing numbers of rows. aligned: rows of the input lie on 16 bytes.

    Few rows: what counts is bytes on the way to every multiprocessor, so narrow tiles where there are few outputs (H200, 1 row of
    4096×14336: 30.8 µs with 32 outputs a program, 32.4 with 64; of 28672×4096: 56.7 with 64). Bits are those of any other tile: on an
    H200 the matrix instructions of a warp and of four give the same sums, but of 8-bit floats. There, and on generation 100, where it is
    not known, 64 outputs at least.
    """
    if kind == "f32":
        return [Tile(16, 64, 16, 32, 4, 3), Tile(0, 64, 64, 32, 4, 3)]
    half = 2 if kind == "f8" else 1  # an 8-bit tile of the same bytes has twice the depth
    count = -(-n // 64)
    narrow = count < target.processors and target.generation != 100 and kind != "f8"
    wide = count >= 2 * target.processors
    deepest = 32 * half
    while 4 * deepest <= k:
        deepest *= 2

    def tile(most: int, bn: int, bm: int, bk: int, warps: int, stages: int, **more: Any) -> Tile:
        """K in two steps at least: of one step, the compiler would add a residual before the products, not after them."""
        return Tile(most, bn, bm, min(bk * half, deepest), warps, _stages(target, (bn + bm) * bk * 2, stages), **more)

    if target.family != "cuda":
        return [tile(16, 64, 16, 64, 4, 2), tile(64, 64, 64, 64, 4, 2), tile(0, 128, 128, 32, 8, 2)]
    tiles = []
    for most in (8, 16):
        if wide:
            tiles.append(tile(most, 64, most, 128, 4, 3 if most == 8 else 4))
        elif not narrow:
            tiles.append(tile(most, 64, most, 128, 4, 6))
        elif 2 * count <= target.processors:
            tiles.append(tile(most, 32, most, 512, 4, 5))
        else:
            tiles.append(tile(most, 32, most, 256, 4, 4))
    tiles.append(tile(32, 64, 32, 128, 4, 5))
    if wide:
        tiles.append(tile(64, 128, 64, 64, 4, 4))
    elif 2 * count <= target.processors:
        tiles.append(tile(64, 64, 32, 128, 4, 5))
    else:
        tiles.append(tile(64, 64, 64, 64, 4, 8))
    if not (target.copies_tiles and aligned) or target.shared_bytes < 160 * KiB:
        return [*tiles, tile(0, 128, 128, 32, 8, 4)]
    tiles.append(tile(1024, 128, 128, 64, 4, 4, programs=target.processors))
    return [*tiles, tile(0, 128, 256, 64, 8, 3, programs=target.processors, flat=count >= 64, parts=2)]


@dataclass(frozen=True)
class NibbleTile:
    """For at most `most` rows (0: any number): tiles of bn outputs by bm rows. `apart`: a program sums one chunk of K."""

    most: int
    bn: int
    bm: int
    warps: int
    stages: int
    apart: bool


def nibble_tiles(target: GpuTarget, n: int, steps: int, span: int) -> tuple[int, list[NibbleTile]]:
    """(chunks that K is summed in, tiles) of a product with 4-bit integers: n outputs, `steps` steps of 4·span values of K.

    One row waits for itself: a step's products hang on the last's. So K is cut where there are few outputs, into up to 8 chunks, whatever
    the number of rows (H200, 4096×14336: 1 row takes 17 µs in 4 chunks, 12.4 µs in 8; 64 rows take 22 µs in 4 chunks, 28 µs in 8)."""
    count = -(-n // 64)
    chunks = 1
    while chunks < 8 and steps % (2 * chunks) == 0 and 2 * chunks * count <= 4 * target.processors:
        chunks *= 2
    if target.family != "cuda":
        return chunks, [
            NibbleTile(16, 64, 16, 4, 2, True),
            NibbleTile(64, 64, 64, 4, 1, True),
            NibbleTile(0, 64, 64, 4, 1, False),
        ]
    step = 4 * span * 2  # bytes of a step's rows; its words take a quarter of that an output
    small = 4 if target.generation == 100 else 2
    sizes = [
        (8, 32 if chunks == 1 and small == 2 else 64, 8, small, 4 if chunks == 1 else 3),
        (16, 64, 16, small, 3),
        (64, 64, 64, 4, 3),
    ]
    if chunks == 1 and target.shared_bytes >= 160 * KiB:
        sizes.append((0, 128, 128, 8, 2))
    else:
        sizes.append((0, 64, 64, 4, 3))
    return chunks, [
        NibbleTile(most, bn, bm, warps, _stages(target, bm * step + bn * 2 * span, stages), most > 0)
        for most, bn, bm, warps, stages in sizes
    ]


def _stages(target: GpuTarget, size: int, most: int) -> int:
    """How many stages of `size` bytes fit into nine tenths of the shared memory, `most` at most, two at least."""
    return max(2, min(most, int(0.9 * target.shared_bytes) // size))


@dataclass(frozen=True)
class AttentionTile:
    """bm rows (tokens by heads that share a key) by bn positions; `ahead`: pages are looked up one tile ahead."""

    bm: int
    bn: int
    warps: int
    stages: int
    ahead: bool


def attention_tiles(target: GpuTarget, share: int, width: int, kind: str) -> list[AttentionTile]:
    """Tiles for: few rows in splits; rows in splits; few tokens a sequence; any others. share: heads to a key; width: of a key and a value
    together, padded. H200: 64 sequences at 8,192 positions read at 93 % of copy bandwidth; 8,160 tokens run at 364 TFLOP/s."""
    element = 4 if kind == "f32" else 2
    bn = 32 if width >= 512 else 64
    stage = bn * width * element

    def tile(bm: int, warps: int, stages: int, ahead: bool) -> AttentionTile:
        rows = bm
        while rows < share:
            rows *= 2
        room = int(0.9 * target.shared_bytes) - rows * width * element // 2
        return AttentionTile(rows, bn, warps, max(1, min(stages, room // stage)), ahead)

    if kind == "f32" or target.shared_bytes < 99 * KiB:
        last = tile(16, 4, 2, True)
    else:
        last = tile(128, 8, 3, True) if target.shared_bytes >= 160 * KiB else tile(64, 4, 2, True)
    return [tile(16, 4, 2, True), tile(16, 4, 2, False), tile(16, 4, 2, False), last]
