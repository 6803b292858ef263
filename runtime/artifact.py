"""The artifact: one file that holds a compiled model. Reading, checking and writing; the only room that compile time shares."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, EnvironmentLacks, UsageError
from .archive import Member, read_archive, write_archive
from .manifest import parse, problem

SCHEMA = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights/model.safetensors"
MAX_HEADER = 64 << 20
ALIGN = 64
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Check:
    """One thing that `llmc verify` looked at."""

    name: str
    ok: bool
    detail: str = ""


def layout_digest(names: list[str], vocabulary: int) -> str:
    """What kernels and manifest must agree on: the order of the weights and the vocabulary. The kernels carry it."""
    return hashlib.sha256(json.dumps([names, vocabulary]).encode()).hexdigest()


class Artifact:
    """An opened artifact. Owns the mapping of the file; `close()` gives it back.

    Opening checks the structure, the schema, and the hash of every member but the weights, whose sizes and offsets alone are
    checked; `check_weights()` hashes them. Raises ArtifactError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        listed, digest = read_archive(path)
        self.members: dict[str, Member] = {m.name: m for m in listed}
        if not listed or listed[0].name != MANIFEST:
            raise ArtifactError(f"{path.name} has no manifest", "it is not an llmc artifact")
        self._file = path.open("rb")
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        raw = self.read(MANIFEST)
        if hashlib.sha256(raw).hexdigest() != digest:
            raise ArtifactError(
                f"{path.name}: the manifest does not match its hash", "the file is altered: fetch or compile it again"
            )
        self.manifest: dict[str, Any] = self._manifest(raw)
        self._check_members()

    def _manifest(self, raw: bytes) -> dict[str, Any]:
        try:
            manifest = parse(raw)
            schema = manifest["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{self.path.name}: the manifest is not valid: {error}") from error
        if schema != SCHEMA:
            raise ArtifactError(
                f"{self.path.name} has schema {schema}, this llmc reads {SCHEMA}",
                "compile it again, or use the llmc that made it",
            )
        wrong = problem(manifest)
        if wrong:
            raise ArtifactError(f"{self.path.name}: the manifest is not valid: {wrong}")
        if sorted(m["name"] for m in manifest["members"]) != sorted(set(self.members) - {MANIFEST}):
            raise ArtifactError(f"{self.path.name}: the manifest does not list the members that are there")
        return dict(manifest)

    def _check_members(self) -> None:
        for entry in self.manifest["members"]:
            name = entry["name"]
            if self.members[name].size != entry["bytes"]:
                raise ArtifactError(
                    f"{self.path.name}: {name} has {self.members[name].size} bytes, the manifest says {entry['bytes']}"
                )
            if not name.startswith("weights/") and self.hash(name) != entry["sha256"]:
                raise ArtifactError(
                    f"{self.path.name}: {name} does not match its hash", "the file is altered: fetch or compile it again"
                )

    def read(self, name: str) -> bytes:
        """A member's bytes; raises ArtifactError when there is no such member."""
        member = self._member(name)
        return self._map[member.offset : member.offset + member.size]

    def has(self, name: str) -> bool:
        return name in self.members

    def hash(self, name: str) -> str:
        """SHA-256 of a member as it is in the file."""
        member = self._member(name)
        digest, view = hashlib.sha256(), memoryview(self._map)
        try:
            for at in range(member.offset, member.offset + member.size, _CHUNK):
                digest.update(view[at : min(at + _CHUNK, member.offset + member.size)])
        finally:
            view.release()
        return digest.hexdigest()

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise ArtifactError(f"{self.path.name} has no member {name}")
        return self.members[name]

    def check_weights(self) -> None:
        """Hash the weights; raises ArtifactError when they do not match the manifest."""
        for entry in self.manifest["members"]:
            if entry["name"].startswith("weights/") and self.hash(entry["name"]) != entry["sha256"]:
                raise ArtifactError(
                    f"{self.path.name}: {entry['name']} does not match its hash", "the file is altered: fetch or compile it again"
                )

    @cached_property
    def tensors(self) -> dict[str, tuple[int, int]]:
        """Each packed tensor's (offset in the file, bytes), checked against the manifest's list and the member's bounds."""
        member = self._member(WEIGHTS)

        def bad(why: str) -> ArtifactError:
            return ArtifactError(
                f"{self.path.name}: the weights are not valid: {why}", "the file is altered: fetch or compile it again"
            )

        if member.size < 8:
            raise bad("no header")
        (length,) = struct.unpack("<Q", self._map[member.offset : member.offset + 8])
        if length > min(member.size - 8, MAX_HEADER):
            raise bad("the header is longer than the member")
        try:
            header = json.loads(self._map[member.offset + 8 : member.offset + 8 + length])
            entries = {n: e for n, e in header.items() if n != "__metadata__"}
            found = {n: (int(e["data_offsets"][0]), int(e["data_offsets"][1])) for n, e in entries.items()}
            kinds = {n: (e["dtype"], e["shape"]) for n, e in entries.items()}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise bad(f"the header is not JSON of tensors: {error}") from error
        start, room = member.offset + 8 + length, member.size - 8 - length
        out = {}
        for name, size in self.manifest["weights"]:
            a, b = found.get(name, (0, -1))
            if kinds.get(name) != ("U8", [size]) or b - a != size or a < 0 or b > room or (start + a) % ALIGN:
                raise bad(f"tensor {name} is not where the manifest has it")
            out[name] = (start + a, size)
        return out

    def tensor(self, name: str) -> memoryview:
        """A packed tensor's bytes in place; valid until `close`."""
        offset, size = self.tensors[name]
        return memoryview(self._map)[offset : offset + size]

    @cached_property
    def base_address(self) -> int:
        """Address of the mapping's first byte; valid until `close`."""
        import numpy as np

        return int(np.frombuffer(self._map, dtype=np.uint8).ctypes.data)

    def close(self) -> None:
        self._file.close()  # the mapping stays while arrays made from it live

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_artifact(path: str | Path) -> Artifact:
    """Open an artifact; raises ArtifactError for what is missing, damaged, of another version, or no artifact at all."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(
            f"{path} does not exist" if not path.exists() else f"{path} is not a file",
            "give the .llmc file that `llmc compile` wrote",
        )
    return Artifact(path)


# --- writing ---------------------------------------------------------------------------------------------------------


class WeightsFile:
    """Packed tensors on their way into the artifact: a temporary file beside the output, so that none stays in memory."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.listed: list[tuple[str, int]] = []
        self.keys: list[str] = []  # what each follows from (codegen/reuse.py)
        self._size = 0

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Append a tensor, padded to a multiple of 64 bytes."""
        size = len(data)
        self._file.write(data)
        self._file.write(bytes(-size % ALIGN))
        self.listed.append((name, size + -size % ALIGN))
        self._size += self.listed[-1][1]

    def member(self) -> tuple[int, Callable[[], Iterator[bytes]]]:
        """Size and content of the safetensors file."""
        entries, at = {}, 0
        for name, size in self.listed:
            entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGN)
        head = struct.pack("<Q", len(text)) + text

        def content() -> Iterator[bytes]:
            yield head
            self._file.seek(0)
            while chunk := self._file.read(_CHUNK):
                yield chunk

        return len(head) + self._size, content

    def close(self) -> None:
        self._file.close()


def _one(data: bytes) -> list[bytes]:
    return [data]


def write_artifact(out: Path, manifest: dict[str, Any], files: dict[str, bytes], weights: WeightsFile | None) -> str:
    """Write the artifact whole or not at all; returns its SHA-256. `manifest` gets its `members` here."""
    contents: list[tuple[str, int, Callable[[], Iterable[bytes]]]] = [
        (n, len(files[n]), partial(_one, files[n])) for n in sorted(files)
    ]
    if weights is not None:
        contents.append((WEIGHTS, *weights.member()))
    listed = []
    for name, size, content in contents:
        digest = hashlib.sha256()
        for chunk in content():
            digest.update(chunk)
        listed.append({"name": name, "bytes": size, "sha256": digest.hexdigest()})
    raw = (json.dumps({**manifest, "members": listed}, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with replacing(out) as stream:
        everything = [(MANIFEST, len(raw), [raw]), *((n, s, c()) for n, s, c in contents)]
        write_archive(stream, everything, hashlib.sha256(raw).hexdigest())
        stream.seek(0)
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class replacing:  # noqa: N801
    """A file written beside its target and renamed onto it when the block ends well."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> Any:
        try:
            self._file = tempfile.NamedTemporaryFile(dir=self._target.parent, prefix=f".{self._target.name}.", delete=False)
        except FileNotFoundError as error:
            raise UsageError(f"the folder {self._target.parent} does not exist", "create it first") from error
        except OSError as error:
            raise EnvironmentLacks(f"{self._target.parent} cannot be written: {error.strerror}") from error
        return self._file

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()
        if kind is None:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(self._file.name, 0o666 & ~mask)
            try:
                os.replace(self._file.name, self._target)
            except OSError as failed:
                os.unlink(self._file.name)
                raise UsageError(f"{self._target} cannot be written: {failed.strerror}", "give the name of a file") from failed
        else:
            os.unlink(self._file.name)
        if isinstance(error, OSError) and error.errno == 28:
            raise EnvironmentLacks(f"no space left on the disk of {self._target.parent}") from error
