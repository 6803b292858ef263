"""What a GPU binary says of itself: registers a thread uses, read from the ELF that the vendor's assembler wrote."""

from __future__ import annotations

import struct
from typing import Any

EIATTR_REGCOUNT = 0x2F


def sections(binary: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit little-endian ELF file by name; {} for anything else."""
    if binary[:6] != b"\x7fELF\x02\x01":
        return {}
    offset, size, count, names = struct.unpack_from("<Q", binary, 0x28)[0], *struct.unpack_from("<HHH", binary, 0x3A)
    heads = [struct.unpack_from("<IIQQQQIIQQ", binary, offset + i * size) for i in range(count)]
    text = binary[heads[names][4] : heads[names][4] + heads[names][5]]
    return {text[h[0] : text.index(b"\0", h[0])].decode(): binary[h[4] : h[4] + h[5]] for h in heads if h[1] != 8}


def resources(binary: bytes, symbol: str) -> dict[str, Any]:
    """`registers`: of a cubin's .nv.info, or the vector registers of an hsaco's metadata, and there `lds`, the bytes of shared memory that it
    declares; {} where neither says."""
    found = sections(binary)
    info = found.get(".nv.info", b"")
    at = 0
    while at + 4 <= len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        if form == 4:
            if attribute == EIATTR_REGCOUNT and value == 8:
                return {"registers": struct.unpack_from("<II", info, at + 4)[1]}
            at += value
        at += 4
    note = found.get(".note", b"")
    said = {"registers": _number(note, b".vgpr_count"), "lds": _number(note, b".group_segment_fixed_size")}
    return {name: value for name, value in said.items() if value is not None}


def _number(note: bytes, key: bytes) -> int | None:
    """The whole number after a key of MessagePack."""
    place = note.find(key) + len(key)
    if place < len(key):
        return None
    first = note[place]
    if first < 0x80:
        return first
    form = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I"}.get(first)
    return struct.unpack_from(form, note, place + 1)[0] if form else None
