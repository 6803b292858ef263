"""Tuning: how much a kernel takes at a time: on CPUs by instruction-set level, on GPUs by chip and product. It changes no bit of what is computed.

A table comes from `llmc tune`; the one that ships with the package is `tuning.json`, where `provenance` says what was measured on which machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest

VERSION = 1
REMAKE = "make the table with llmc tune"
SHIPPED = Path(__file__).with_name("tuning.json")
MACROS = {"x86-64-amx": "LLMC_AMX", "x86-64-v4": "__AVX512VNNI__", "x86-64-v3": "__AVX2__", "aarch64": "__aarch64__"}
"""How generated code knows its level, the widest first."""


@dataclass(frozen=True)
class Knob:
    """A number of the generated code: its name there, the values that it may have (the first unless a table says otherwise)."""

    macro: str
    values: tuple[int, ...]


KNOBS = {
    "few_rows": Knob("FEW_ROWS", (8, 2, 4, 16)),
    "piece": Knob("PIECE", (32, 8, 16, 64)),
}
"""few_rows: up to this many rows a weight is read tile by tile, and unpacked as it is used; piece: tiles of 16 outputs that a thread takes
at a time, at most."""


TUNABLE: dict[str, tuple[int, ...]] = {
    "bn": (32, 64, 128),
    "bk": (32, 64, 128, 256, 512, 1024),
    "stages": tuple(range(1, 11)),
    "unroll": (1, 2, 4, 8),
    "registers": tuple(range(32, 249, 8)),
}
"""Fields of the tiles of a GPU's products (codegen/triton/tiles.py), and the values that they may have."""
ROWS = ("2", "8", "16", "32", "64", "1024", "0")
"""Up to how many rows a kernel takes; 0: any number."""
PRODUCT = re.compile(r"(f32|f16|bf16|f8|i8|int4:g\d+) \d+x\d+")
"""What a weight is read as, its outputs and inputs."""


Fields = Mapping[str, Mapping[str, int]]
"""Of one product: for a number of rows, as text, the fields of its tile that differ from what a compile chooses."""


@dataclass(frozen=True)
class Tuning:
    """`levels`: for each CPU level the knobs that differ from their first values; for each chip, by product and number of rows, the fields of its
    tile that differ from what a compile chooses."""

    levels: Mapping[str, Mapping[str, Any]]

    def value(self, level: str, knob: str) -> int:
        return int(self.levels.get(level, {}).get(knob, KNOBS[knob].values[0]))

    def tiles(self, chip: str, product: str) -> Fields:
        found: Fields = self.levels.get(chip, {}).get(product, {})
        return found

    def header(self) -> str:
        """C: the knobs of whichever level is compiled."""
        lines = ["/* How much a kernel takes at a time; see `llmc tune`. */"]
        for word, (level, macro) in zip(("#if", *["#elif"] * len(MACROS)), MACROS.items(), strict=False):
            lines.append(f"{word} defined({macro})")
            lines += [f"#define {knob.macro} {self.value(level, name)}" for name, knob in KNOBS.items()]
        lines += ["#else", *(f"#define {knob.macro} {knob.values[0]}" for knob in KNOBS.values()), "#endif", ""]
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        return {level: dict(sorted(knobs.items())) for level, knobs in sorted(self.levels.items())}


def parse_tuning(levels: Any, where: str) -> Tuning:
    """Checks a table's levels. Raises InputError naming what is unknown."""
    if not isinstance(levels, dict):
        raise InputError(f"{where}: `levels` is not a mapping", REMAKE)
    for level, knobs in levels.items():
        if not isinstance(knobs, dict):
            raise InputError(f"{where}: {level} is not a mapping", REMAKE)
        if str(level).partition(":")[0] in ("cuda", "rocm"):
            _check_chip(level, knobs, where)
            continue
        if level not in MACROS:
            raise InputError(f"{where}: unknown level {level!r}", nearest(str(level), list(MACROS)))
        for name, value in knobs.items():
            if name not in KNOBS:
                raise InputError(f"{where}: {level} has an unknown knob {name!r}", nearest(str(name), list(KNOBS)))
            if isinstance(value, bool) or value not in KNOBS[name].values:
                valid = ", ".join(map(str, sorted(KNOBS[name].values)))
                raise InputError(f"{where}: {name} of {level} cannot be {value!r}", f"it is one of {valid}")
    return Tuning(levels)


def _check_chip(chip: str, products: Mapping[str, Any], where: str) -> None:
    from .triton.target import TARGETS

    if chip not in TARGETS:
        raise InputError(f"{where}: unknown chip {chip!r}", nearest(chip, list(TARGETS)))
    for product, tiles in products.items():
        if not PRODUCT.fullmatch(product) or not isinstance(tiles, dict):
            raise InputError(f"{where}: {product!r} of {chip} is no product", "products are named as in bf16 4096x14336")
        for most, fields in tiles.items():
            if most not in ROWS or not isinstance(fields, dict):
                raise InputError(
                    f"{where}: {product} of {chip} has {most!r} where a number of rows and a tile's fields are",
                    f"numbers of rows are {', '.join(ROWS)}",
                )
            for name, value in fields.items():
                if name not in TUNABLE:
                    raise InputError(f"{where}: {product} of {chip} has an unknown field {name!r}", nearest(name, list(TUNABLE)))
                if isinstance(value, bool) or value not in TUNABLE[name]:
                    valid = ", ".join(map(str, TUNABLE[name]))
                    raise InputError(f"{where}: {name} of {product} cannot be {value!r}", f"it is one of {valid}")


def read_tuning(path: str | Path) -> Tuning:
    """A table's file. Raises InputError when it cannot be read or is none."""
    try:
        table = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the tuning table {path} cannot be read: {error}", "make one with llmc tune -o TABLE.json") from error
    if not isinstance(table, dict) or table.get("tuning") != VERSION:
        raise InputError(f"{path} is not a tuning table of version {VERSION}", "make one with llmc tune -o TABLE.json")
    return parse_tuning(table.get("levels"), str(path))


@cache
def shipped_tuning() -> Tuning:
    """The package's own table."""
    return read_tuning(SHIPPED)
