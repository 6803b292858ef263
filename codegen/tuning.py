"""Tuning: how many rows or tiles a CPU kernel takes at a time, by instruction-set level. It changes no bit of what is computed.

A table comes from `llmc tune`; the one that ships with the package is `tuning.json`, where `provenance` says what was measured on which machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest

VERSION = 1
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


@dataclass(frozen=True)
class Tuning:
    """`levels`: for each level the knobs that differ from their first values."""

    levels: Mapping[str, Mapping[str, int]]

    def value(self, level: str, knob: str) -> int:
        return self.levels.get(level, {}).get(knob, KNOBS[knob].values[0])

    def header(self) -> str:
        """C: the knobs of whichever level is compiled."""
        lines = ["/* How much a kernel takes at a time; see `llmc tune`. */"]
        for word, (level, macro) in zip(("#if", *["#elif"] * len(MACROS)), MACROS.items(), strict=False):
            lines.append(f"{word} defined({macro})")
            lines += [f"#define {knob.macro} {self.value(level, name)}" for name, knob in KNOBS.items()]
        lines += ["#else", *(f"#define {knob.macro} {knob.values[0]}" for knob in KNOBS.values()), "#endif", ""]
        return "\n".join(lines)

    def facts(self) -> dict[str, dict[str, int]]:
        return {level: dict(sorted(knobs.items())) for level, knobs in sorted(self.levels.items())}


def parse_tuning(levels: Any, where: str) -> Tuning:
    """Checks a table's levels. Raises InputError naming what is unknown."""
    if not isinstance(levels, dict):
        raise InputError(f"{where}: `levels` is not a mapping", "make the table with llmc tune")
    for level, knobs in levels.items():
        if level not in MACROS:
            raise InputError(f"{where}: unknown level {level!r}", nearest(str(level), list(MACROS)))
        if not isinstance(knobs, dict):
            raise InputError(f"{where}: {level} is not a mapping", "make the table with llmc tune")
        for name, value in knobs.items():
            if name not in KNOBS:
                raise InputError(f"{where}: {level} has an unknown knob {name!r}", nearest(str(name), list(KNOBS)))
            if isinstance(value, bool) or value not in KNOBS[name].values:
                valid = ", ".join(map(str, sorted(KNOBS[name].values)))
                raise InputError(f"{where}: {name} of {level} cannot be {value!r}", f"it is one of {valid}")
    return Tuning(levels)


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
