"""The archive under an artifact: a zip of stored members, each page-aligned, in one canonical form.

Every byte that is not a member's data follows from the members' names, sizes and checksums, so a reader can make the
structure again and compare: an altered directory, an overlap or a path that climbs cannot get past it. The archive's comment
is the SHA-256 of the first member, the manifest; the manifest has the SHA-256 of all others.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import ArtifactError

PAGE = 4096
NAME = re.compile(r"(?:[\w][\w.\-]*/)*[\w][\w.\-]*")
MAX_MEMBERS = 4096
_LOCAL, _CENTRAL, _END, _END64, _LOCATOR = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
_DATE = 0x0021  # 1980-01-01
_PAD_ID = 0x4C4D  # an extra field of zeros that aligns the data
COMMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class Member:
    """A stored file: its name, size and CRC-32, and where its data begins."""

    name: str
    size: int
    crc: int
    offset: int = 0


def _local(name: bytes, size: int, crc: int, at: int) -> bytes:
    """The local header of a member that starts at byte `at`, padded so that its data begins on a page."""
    zip64 = struct.pack("<HHQQ", 1, 16, size, size)
    bare = 30 + len(name) + len(zip64) + 4
    pad = -(at + bare) % PAGE
    extra = zip64 + struct.pack("<HH", _PAD_ID, pad) + bytes(pad)
    return (
        _LOCAL
        + struct.pack("<5H3I2H", 45, 0x0800, 0, 0, _DATE, crc, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
        + name
        + extra
    )


def _directory(members: list[tuple[Member, int]], at: int, comment: bytes) -> bytes:
    """The central directory and the end records; members come with the offsets of their local headers."""
    entries = b""
    for member, header in members:
        name = member.name.encode()
        zip64 = struct.pack("<HHQQQ", 1, 24, member.size, member.size, header)
        entries += (
            _CENTRAL
            + struct.pack(
                "<6H3I5H2I",
                45,
                45,
                0x0800,
                0,
                0,
                _DATE,
                member.crc,
                0xFFFFFFFF,
                0xFFFFFFFF,
                len(name),
                len(zip64),
                0,
                0,
                0,
                0,
                0xFFFFFFFF,
            )
            + name
            + zip64
        )
    end64 = _END64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, len(members), len(members), len(entries), at)
    locator = _LOCATOR + struct.pack("<IQI", 0, at + len(entries), 1)
    end = _END + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, len(comment)) + comment
    return entries + end64 + locator + end


def write_archive(out: BinaryIO, members: Iterable[tuple[str, int, Iterable[bytes]]], comment: str) -> None:
    """Write (name, size, chunks of data) in order; the comment is 64 hexadecimal digits."""
    written: list[tuple[Member, int]] = []
    for name, size, chunks in members:
        header_at = out.tell()
        out.write(_local(name.encode(), size, 0, header_at))
        crc = count = 0
        for chunk in chunks:
            out.write(chunk)
            crc, count = zlib.crc32(chunk, crc), count + len(chunk)
        if count != size:
            raise ValueError(f"{name}: {count} bytes, announced {size}")
        end = out.tell()
        out.seek(header_at)
        out.write(_local(name.encode(), size, crc, header_at))
        out.seek(end)
        written.append((Member(name, size, crc), header_at))
    out.write(_directory(written, out.tell(), comment.encode()))


def read_archive(path: Path) -> tuple[list[Member], str]:
    """Members in order, with the offsets of their data, and the comment. Raises ArtifactError on anything but the canonical form."""

    def bad(why: str) -> ArtifactError:
        return ArtifactError(
            f"{path.name} is not a valid artifact: {why}",
            "it is truncated or altered, or not made by llmc: fetch or compile it again",
        )

    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            tail_bytes = 22 + COMMENT_BYTES + 20 + 56
            if size < tail_bytes:
                raise bad(f"{size} bytes are too few")
            stream.seek(size - tail_bytes)
            tail = stream.read(tail_bytes)
            if tail[:4] != _END64 or tail[56:60] != _LOCATOR or tail[76:80] != _END:
                raise bad("it does not end as an artifact does")
            count, directory_bytes, directory_at = struct.unpack("<QQQ", tail[32:56])
            if count > MAX_MEMBERS or directory_at + directory_bytes + tail_bytes != size or directory_bytes > 1024 * MAX_MEMBERS:
                raise bad("its directory is not where it says")
            comment = tail[-COMMENT_BYTES:]
            stream.seek(directory_at)
            entries = stream.read(directory_bytes)
            members: list[tuple[Member, int]] = []
            place = at = 0
            for _ in range(count):
                if entries[at : at + 4] != _CENTRAL or len(entries) < at + 46:
                    raise bad("its directory is damaged")
                crc, name_bytes = (
                    struct.unpack("<I", entries[at + 16 : at + 20])[0],
                    struct.unpack("<H", entries[at + 28 : at + 30])[0],
                )
                name = entries[at + 46 : at + 46 + name_bytes].decode("ascii", "replace")
                body = entries[at + 46 + name_bytes : at + 46 + name_bytes + 28]
                if len(body) < 28 or not NAME.fullmatch(name) or any(m.name == name for m, _ in members):
                    raise bad(f"member name {name[:80]!r} is not allowed")
                member_bytes, header_at = struct.unpack("<QQ", body[4:12] + body[20:28])
                if header_at != place or member_bytes > size:
                    raise bad(f"member {name} overlaps another or lies outside the file")
                header = _local(name.encode(), member_bytes, crc, place)
                if place + len(header) + member_bytes > directory_at:
                    raise bad(f"member {name} lies outside the file")
                stream.seek(place)
                if stream.read(len(header)) != header:
                    raise bad(f"the header of {name} is damaged")
                members.append((Member(name, member_bytes, crc, place + len(header)), place))
                place += len(header) + member_bytes
                at += 46 + name_bytes + 28
            if place != directory_at or entries + tail != _directory(members, directory_at, comment):
                raise bad("its directory is damaged")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}", "check the path and its permissions") from error
    return [m for m, _ in members], comment.decode("ascii", "replace")
