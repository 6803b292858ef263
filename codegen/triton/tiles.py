"""How products and attention are cut into tiles on a chip: measured on an H200 where it says so, else what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...errors import InputError
from ..tuning import REMAKE, TUNABLE, Fields, parse_tuning
from .plan import up
from .target import GpuTarget, KiB

AnyTile = TypeVar("AnyTile", "Tile", "NibbleTile", "FewRows")


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


def float_tiles(target: GpuTarget, n: int, k: int, kind: str, table: Fields, *, aligned: bool) -> list[Tile]:
    """Tiles of a product with a weight [n, k] of a float type, or of 8-bit integers, for growing numbers of rows. table: what a tuning table
    has for it; aligned: rows of the input lie on 16 bytes. Raises InputError for a table that does not fit."""
    tiles = _tuned(_float_tiles(target, n, k, kind, aligned=aligned), table)
    for tile in tiles:
        given = table.get(str(tile.most), {})
        narrow = tile.bn < 64 and (kind == "f8" or target.generation == 100)
        shared = (tile.bn + tile.bm) * tile.bk * tile.stages * {"f32": 4, "f8": 1, "i8": 1}.get(kind, 2)
        if given and (
            narrow or tile.bk > _deepest(k, kind) or shared > target.shared_bytes or (tile.programs and set(given) != {"stages"})
        ):
            raise _misfit(f"{kind} {n}x{k}", tile.most, given)
    return tiles


def _deepest(k: int, kind: str) -> int:
    """The most values of K that a step may have: of one step, the compiler would add a residual before the products, not after them."""
    deepest = 64 if kind in ("f8", "i8") else 32
    while 4 * deepest <= k:
        deepest *= 2
    return deepest


def _float_tiles(target: GpuTarget, n: int, k: int, kind: str, *, aligned: bool) -> list[Tile]:
    """What fits, or was measured.

    Few rows: what counts is bytes on the way to every multiprocessor, so narrow tiles where there are few outputs (H200, 1 row of
    4096×14336: 30.8 µs with 32 outputs a program, 32.4 with 64; of 28672×4096: 56.7 with 64). Bits are those of any other tile: on an
    H200 the matrix instructions of a warp and of four give the same sums, but of 8-bit floats. There, and on generation 100, where it is
    not known, 64 outputs at least.
    """
    if kind == "f32":
        return [Tile(16, 64, 16, 32, 4, 3), Tile(0, 64, 64, 32, 4, 3)]
    half = 2 if kind in ("f8", "i8") else 1  # an 8-bit tile of the same bytes has twice the depth
    count = -(-n // 64)
    narrow = count < target.processors and target.generation != 100 and kind != "f8"
    wide = count >= 2 * target.processors
    deepest = _deepest(k, kind)

    def tile(most: int, bn: int, bm: int, bk: int, warps: int, stages: int, **more: Any) -> Tile:
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
    tiles.append(tile(32, 64, 32, 128, 4, 4 if wide else 5))
    if wide:
        tiles.append(tile(64, 128, 64, 64, 4, 4))
    elif 2 * count <= target.processors:
        tiles.append(tile(64, 64, 32, 128, 4, 5))
    else:
        tiles.append(tile(64, 64, 64, 64, 4, 8))
    if not (target.copies_tiles and aligned) or target.shared_bytes < 160 * KiB:
        return [*tiles, tile(0, 128, 128, 32, 8, 4)]
    tiles.append(tile(1024, 128, 128, 64, 4, 5, programs=target.processors))
    return [*tiles, tile(0, 128, 256, 64, 8, 3, programs=target.processors, flat=count >= 64, parts=2)]


@dataclass(frozen=True)
class NibbleTile:
    """For at most `most` rows (0: any number): tiles of bn outputs by bm rows, `unroll` steps of 64 values of K at a time. `apart`: a program sums
    one part of K."""

    most: int
    bn: int
    bm: int
    warps: int
    stages: int
    unroll: int
    apart: bool


@dataclass(frozen=True)
class FewRows:
    """The kernel for at most `most` rows, whose programs' warps sum the chunks of K: `depth` steps on the way, in so many `registers` a thread;
    `early`: the next launch may begin with it."""

    most: int
    depth: int
    registers: int
    early: bool


@dataclass(frozen=True)
class NibbleCut:
    """How a product with 4-bit integers in groups sums K, padded to `width`: in `chunks`, those in `parts`; what takes one or two rows, where
    there is such a kernel; and its tiles for growing numbers of rows."""

    width: int
    chunks: int
    parts: int
    few: FewRows | None
    tiles: tuple[NibbleTile, ...]


def parts_of(target: GpuTarget, n: int, steps: int) -> int:
    """In how many parts K is summed, whatever the number of rows, so that few of them have programs for all of the device: up to 8, of whole
    steps."""
    parts = 1
    while parts < 8 and steps % (2 * parts) == 0 and 2 * parts * -(-n // 64) <= 4 * target.processors:
        parts *= 2
    return parts


WARPS_ROWS = 2
"""Rows up to which the warps of a program sum the chunks of K of a product with 4-bit integers."""
PADDED = 1.07
"""How much longer K may be made so that it falls into more chunks."""
REGISTERS = 65536
"""Of a multiprocessor."""


def nibble_cut(target: GpuTarget, n: int, k: int, group: int, table: Fields) -> NibbleCut:
    """Of a weight [n, k] in groups of `group` values; table: what a tuning table has for it. Raises InputError for one that does not fit."""
    cut = _nibble_cut(target, n, k, group)
    few = _tuned([cut.few], table)[0] if cut.few is not None else None
    tiles = _tuned(cut.tiles, table)
    step, steps = max(64, group) // 64, cut.width // 64 // cut.chunks
    for tile in tiles:
        given = table.get(str(tile.most), {})
        apart = steps % tile.unroll != 0 or tile.unroll % step != 0
        if given and (apart or (tile.bm * 128 + tile.bn * 32) * tile.unroll * tile.stages > target.shared_bytes):
            raise _misfit(f"int4:g{group} {n}x{k}", tile.most, given)
    if few is not None and str(few.most) in table and few.registers * 32 * cut.chunks > REGISTERS:
        raise _misfit(f"int4:g{group} {n}x{k}", few.most, table[str(few.most)])
    return replace(cut, few=few, tiles=tuple(tiles))


def _misfit(product: str, most: int, given: Mapping[str, int]) -> InputError:
    return InputError(
        f"the tuning table's tile of {product} for {most or 'any number of'} rows does not fit: {dict(given)}", REMAKE
    )


def _nibble_cut(target: GpuTarget, n: int, k: int, group: int) -> NibbleCut:
    """What fits, or was measured.

    One row waits for itself: a step's products hang on the last's. So K is cut, whatever the number of rows: into chunks, one for each warp
    of a program with few rows, and into parts, one for each program of a tile with more. H200, one row, µs in 4, 8 and 16 chunks:
    28672×4096: 20.9, 18.6, 24.0; 6144×4096: 7.1 in 16, 5.8 in 8; 4096×4096: 4.8 in 8, 4.5 in 16; 4096×14336: 14.0 in 8, 10.9 in 16.
    Registers follow from the programs that each multiprocessor is to hold: of the last, 256 programs, 13.5 µs where three fit, 10.9 where two do.
    In 4 and 8 parts the last takes 20 and 13.5 µs for 8 rows, 24.5 and 27.5 for 64."""
    step = max(64, group)
    count = -(-n // 64)
    chunks = 16 if 2 * count <= target.processors else 8
    while chunks > 1 and up(k, step * chunks) > PADDED * up(k, step):
        chunks //= 2
    width = up(k, step * chunks)
    parts = parts_of(target, n, chunks)
    steps = width // 64 // chunks

    def tile(most: int, bn: int, bm: int, warps: int, stages: int, wanted: int = 2) -> NibbleTile:
        unroll = step // 64
        while steps % (2 * unroll) == 0 and 2 * unroll <= wanted:
            unroll *= 2
        size = (bm * 128 + bn * 32) * unroll
        return NibbleTile(most, bn, bm, warps, _stages(target, size, stages), unroll, parts > 1 and most > 0)

    if target.family != "cuda":
        return NibbleCut(width, chunks, parts, None, (tile(16, 64, 16, 4, 2), tile(64, 64, 64, 4, 1), tile(0, 64, 64, 4, 1)))
    few, small = None, [tile(16, 64, 16, 4, 3)]
    if target.generation != 100:
        depth = step // 64
        while steps % (2 * depth) == 0 and 2 * depth <= 8:
            depth *= 2
        programs = min(4, -(-4 * count // target.processors))
        registers = REGISTERS // (32 * chunks * programs) // 8 * 8
        few = FewRows(WARPS_ROWS, depth, min(registers, 248), depth == steps)
        small = [tile(8, 32, 8, 2, 4, 4), tile(16, 32, 16, 2, 4), tile(32, 64, 32, 4, 4)]
    deep = target.shared_bytes >= 160 * KiB and (parts == 1 or k > 2 * n)
    return NibbleCut(width, chunks, parts, few, (*small, tile(64, 64, 64, 4, 3), tile(0, 64, 128 if deep else 64, 4, 3)))


def _tuned(tiles: Sequence[AnyTile], table: Fields) -> list[AnyTile]:
    """The tiles with a tuning table's fields. A warp of a product with 4-bit integers has 16 outputs, so its warps follow."""
    made = []
    for tile in tiles:
        fields: dict[str, Any] = dict(table.get(str(tile.most), {}))
        if unknown := set(fields) - {f for f in TUNABLE if hasattr(tile, f)}:
            raise InputError(
                f"the tuning table has {', '.join(sorted(unknown))} for {tile.most or 'any number of'} rows, where there is none",
                REMAKE,
            )
        if isinstance(tile, NibbleTile) and "bn" in fields:
            fields["warps"] = fields["bn"] // 16
        made.append(replace(tile, **fields))
    return made


def candidates(target: GpuTarget, product: str) -> dict[str, list[dict[str, int]]]:
    """What `llmc tune` tries for a product as a table names it: for each number of rows the fields that may be tried, one at a time. None
    changes the order in which a product is summed."""
    kind, _, shape = product.partition(" ")
    n, k = map(int, shape.split("x"))

    def made(table: Fields) -> list[Tile | NibbleTile | FewRows]:
        if kind.startswith("int4"):
            cut = nibble_cut(target, n, k, int(kind.partition(":g")[2]), table)
            return [*([cut.few] if cut.few is not None else []), *cut.tiles]
        return [*float_tiles(target, n, k, kind, table, aligned=True)]

    def fits(most: str, fields: dict[str, int]) -> bool:
        try:
            made(parse_tuning({target.name: {product: {most: fields}}}, product).tiles(target.name, product))
        except InputError:
            return False
        return True

    return {str(tile.most): [f for f in _tried(tile) if fits(str(tile.most), f)] for tile in made({})}


def _tried(tile: Tile | NibbleTile | FewRows) -> list[dict[str, int]]:
    if isinstance(tile, FewRows):
        near = range(max(32, tile.registers - 32), min(248, tile.registers + 48) + 1, 16)
        return [{"registers": r} for r in (*near, 248) if r != tile.registers]
    tried = [{"stages": tile.stages + more} for more in (-1, 1, 2)]
    if isinstance(tile, NibbleTile):
        return [*tried, {"bn": 96 - tile.bn}, {"unroll": tile.unroll // 2}, {"unroll": tile.unroll * 2}]
    tried += [{"bn": n} for n in (32, 64, 128) if n != tile.bn]
    return [*tried, {"bk": tile.bk // 2}, {"bk": tile.bk * 2}]


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
    return [tile(16, 4, 3, True), tile(16, 4, 2, False), tile(16, 4, 2, False), last]
