"""Sizes as people write them: `80MB`, `1GiB`."""

from __future__ import annotations

import re

from ..errors import UsageError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
}


def parse_size(text: str | int) -> int:
    """Bytes; raises UsageError for what is not a size."""
    if isinstance(text, int):
        text = str(text)
    match = re.fullmatch(r"\s*(\d+)(\.\d+)?\s*([A-Za-z]*)\s*", text, re.ASCII)
    if match is None or match[3].upper() not in _UNITS:
        raise UsageError(f"{text!r} is not a size", "write it as 80MB or 1GiB")
    unit = _UNITS[match[3].upper()]
    return int(match[1]) * unit + int(float(match[2] or 0) * unit)


def show_size(count: int) -> str:
    """Bytes for a person: 97.4 MB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if round(count / size, 1) >= 1 and (count >= size or size > 1000):
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
