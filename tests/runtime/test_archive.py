"""The artifact file: canonical, readable by any zip tool, and refused with ArtifactError whatever was done to it."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile

import pytest
from llmc.errors import ArtifactError, LlmcError, UsageError
from llmc.runtime.archive import PAGE, _directory, _local, read_archive, write_archive
from llmc.runtime.artifact import ALIGN, MANIFEST, WEIGHTS, WeightsFile, open_artifact, write_artifact
from manifests import BASE

TENSORS = {"a": bytes(range(256)) * 2, "b": b"\x07" * 100}
FILES = {"model.ir": b"llmc.ir 1\n", "tokenizer/tokenizer.json": b"{}", "empty": b""}


@pytest.fixture
def path(tmp_path):
    """A small artifact with weights and other members; nothing in it can be run."""
    weights = WeightsFile(tmp_path)
    for name, data in TENSORS.items():
        weights.add(name, data)
    write_artifact(tmp_path / "small.llmc", {**BASE, "weights": [list(t) for t in weights.listed]}, FILES, weights)
    weights.close()
    return tmp_path / "small.llmc"


def read_everything(path):
    """All that reading an artifact does before kernels run."""
    with open_artifact(path) as artifact:
        artifact.check_weights()
        return {name: artifact.read(name) for name in artifact.members}, artifact.tensors


def refused(path, data, what):
    path.write_bytes(data)
    try:
        read_everything(path)
    except ArtifactError:
        return
    raise AssertionError(f"accepted: {what}")


def made_by_hand(path, members, comment=None):
    """An archive in canonical form with any members: what an attacker who knows the format can write."""
    with path.open("wb") as out:
        write_archive(out, [(n, len(b), [b]) for n, b in members], comment or hashlib.sha256(members[0][1]).hexdigest())
    return path


def with_manifest(path, change, files=FILES, weights=None):
    """A self-consistent artifact whose manifest is `change(valid manifest)`, or the bytes that it returns."""
    members = sorted(files.items()) + ([(WEIGHTS, weights)] if weights is not None else [])
    manifest = {**BASE, "members": [{"name": n, "bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in members]}
    changed = change(manifest)
    raw = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    return made_by_hand(path, [(MANIFEST, raw), *members])


def test_what_is_written_is_read_back(path):
    members, tensors = read_everything(path)
    assert {n: b for n, b in members.items() if n in FILES} == FILES
    data = path.read_bytes()
    for name, (at, size) in tensors.items():
        assert data[at : at + size] == TENSORS[name] + bytes(-len(TENSORS[name]) % ALIGN)


def test_python_reads_it_as_a_zip(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == MANIFEST
        assert {n: archive.read(n) for n in FILES} == FILES
        assert archive.comment.decode() == hashlib.sha256(archive.read(MANIFEST)).hexdigest()


def test_members_begin_on_pages_and_tensors_on_cache_lines(path):
    with open_artifact(path) as artifact:
        assert all(m.offset % PAGE == 0 for m in artifact.members.values())
        assert all(at % ALIGN == 0 and size % ALIGN == 0 for at, size in artifact.tensors.values())


def test_every_truncation_is_refused(path):
    data = path.read_bytes()
    with open_artifact(path) as artifact:
        starts = [m.offset for m in artifact.members.values()]
    points = {
        0,
        1,
        3,
        4,
        30,
        len(data) - 1,
        len(data) - 64,
        len(data) - 65,
        len(data) - 86,
        len(data) - 106,
        len(data) - 162,
        len(data) - 163,
    }
    points |= {s + d for s in starts for d in (-PAGE, -1, 0, 1, 2)} | set(range(0, len(data), 509))
    for size in sorted(p for p in points if 0 <= p < len(data)):
        refused(path, data[:size], f"{size} of {len(data)} bytes")


def test_trailing_and_leading_bytes_are_refused(path):
    data = path.read_bytes()
    refused(path, data + b"\0", "a byte more")
    refused(path, data + bytes(PAGE), "a page more")
    refused(path, bytes(PAGE) + data, "a page before")
    refused(path, data + data, "twice")


def test_every_flipped_bit_is_noticed(path, random):
    """All bits of the directory, the end records and the meaningful part of every header; elsewhere a fresh sample."""
    data = path.read_bytes()
    with open_artifact(path) as artifact:
        heads = [m.offset for m in artifact.members.values()]
    directory = struct.unpack("<Q", data[-162 + 48 : -162 + 56])[0]
    bits = set(range(directory * 8, len(data) * 8))
    at = 0
    for member, offset in zip(artifact.members.values(), heads, strict=True):
        bits |= set(range(at * 8, (at + 30 + len(member.name) + 24) * 8))
        at = offset + member.size
    bits |= set(random.integers(0, len(data) * 8, 2500).tolist())
    for bit in sorted(bits):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        refused(path, bytes(changed), f"bit {bit % 8} of byte {bit // 8} flipped")


def test_swapped_pages_are_noticed(path):
    data = path.read_bytes()
    refused(path, data[PAGE : 2 * PAGE] + data[:PAGE] + data[2 * PAGE :], "two pages exchanged")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "./a",
        "a\\b",
        "C:evil",
        ".hidden",
        "a/.ssh/key",
        "a b",
        "",
        "a/",
        "a\0b",
        "ä",
        "-rf",
    ],
)
def test_member_names_that_climb_or_hide_are_refused(tmp_path, name):
    path = with_manifest(tmp_path / "x.llmc", lambda m: m, files={name: b"x"})
    with pytest.raises(ArtifactError):
        read_everything(path)


def test_a_member_twice_is_refused(tmp_path):
    raw = json.dumps({**BASE, "members": [{"name": "a", "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}]}).encode()
    path = made_by_hand(tmp_path / "x.llmc", [(MANIFEST, raw), ("a", b"x"), ("a", b"y")])
    with pytest.raises(ArtifactError):
        read_everything(path)


def rebuilt(path, change_members):
    """The directory of an artifact written anew with changed (name, size, crc, offset of the header) entries, data untouched."""
    members, comment = read_archive(path)
    data = path.read_bytes()
    at, entries = 0, []
    for m in members:
        entries.append([m, at])
        at = m.offset + m.size
    change_members(entries)
    return data[:at] + _directory([(m, h) for m, h in entries], at, comment.encode())


def test_overlapping_and_moved_members_are_refused(path):
    def overlap(entries):
        entries[2][1] = entries[1][1]

    def beyond(entries):
        entries[-1][1] = 1 << 60

    def swap(entries):
        entries[0], entries[1] = entries[1], entries[0]

    for change in (overlap, beyond, swap):
        made = rebuilt(path, change)
        original = path.read_bytes()
        refused(path, made, change.__name__)
        path.write_bytes(original)


@pytest.mark.parametrize("size", [1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_huge_announced_sizes_are_refused_at_once(path, size):
    """No allocation follows a number in the file."""
    data = path.read_bytes()
    out = io.BytesIO()
    out.write(_local(b"manifest.json", size, 0, 0)[: 30 + 13 + 24])
    refused(path, data[: -162 + 32] + struct.pack("<QQQ", size, size, size) + data[-162 + 56 :], "huge directory")
    refused(path, out.getvalue() + data[30 + 13 + 24 :], "huge member")
    refused(path, data[: -162 + 32] + struct.pack("<Q", size) + data[-162 + 40 :], "huge number of members")


def test_no_manifest_or_not_first_is_refused(tmp_path):
    with pytest.raises(ArtifactError):
        read_everything(made_by_hand(tmp_path / "x.llmc", [("other", b"{}")]))
    with pytest.raises(ArtifactError):
        read_everything(made_by_hand(tmp_path / "x.llmc", [("other", b"{}"), (MANIFEST, b"{}")]))


@pytest.mark.parametrize("schema", [0, 2, "1", None, [], 1.5, -1])
def test_another_schema_is_refused_and_says_which(tmp_path, schema):
    with pytest.raises(ArtifactError, match="schema"):
        read_everything(with_manifest(tmp_path / "x.llmc", lambda m: {**m, "schema": schema}))


MANIFESTS = {
    "not json": b"{",
    "not utf-8": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"7",
    "nested beyond recursion": b"[" * 200_000,
    "no members": lambda m: {k: v for k, v in m.items() if k != "members"},
    "members is a number": lambda m: {**m, "members": 5},
    "members is null": lambda m: {**m, "members": None},
    "members is a string": lambda m: {**m, "members": "abc"},
    "a member is a number": lambda m: {**m, "members": [5]},
    "a member without a name": lambda m: {**m, "members": [{}]},
    "a member's name is a list": lambda m: {**m, "members": [{"name": [], "bytes": 0, "sha256": ""}]},
    "a member without a size": lambda m: {**m, "members": [{k: v for k, v in e.items() if k != "bytes"} for e in m["members"]]},
    "a member without a hash": lambda m: {**m, "members": [{k: v for k, v in e.items() if k != "sha256"} for e in m["members"]]},
    "a wrong size": lambda m: {**m, "members": [{**e, "bytes": e["bytes"] + 1} for e in m["members"]]},
    "a wrong hash": lambda m: {**m, "members": [{**e, "sha256": "0" * 64} for e in m["members"]]},
    "a member too many": lambda m: {**m, "members": [*m["members"], {"name": "more", "bytes": 0, "sha256": ""}]},
    "a member too few": lambda m: {**m, "members": m["members"][1:]},
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests_are_refused(tmp_path, case):
    change = MANIFESTS[case]
    path = with_manifest(tmp_path / "x.llmc", change if callable(change) else lambda _: change)
    with pytest.raises(ArtifactError):
        read_everything(path)


def safetensors(header, data=bytes(128)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return struct.pack("<Q", len(text)) + text + data


def entry(a, b):
    return {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]}


WEIGHT_MEMBERS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header longer than the member": struct.pack("<Q", 1 << 40) + b"{}",
    "header length of 2^64-1": struct.pack("<Q", (1 << 64) - 1) + bytes(100),
    "not json": safetensors(b"{"),
    "not utf-8": safetensors(b"\xff\xff"),
    "a list": safetensors([]),
    "nested beyond recursion": safetensors(b'{"a":' * 100_000),
    "no such tensor": safetensors({"b": entry(0, 64)}),
    "entry is a number": safetensors({"a": 5}),
    "no offsets": safetensors({"a": {}}),
    "one offset": safetensors({"a": {"data_offsets": [0]}}),
    "offsets are text": safetensors({"a": {"data_offsets": ["x", "y"]}}),
    "offsets are infinite": safetensors(b'{"a":{"dtype":"U8","shape":[64],"data_offsets":[0,1e999]}}'),
    "offsets are nan": safetensors(b'{"a":{"dtype":"U8","shape":[64],"data_offsets":[0,NaN]}}'),
    "negative": safetensors({"a": entry(-64, 0)}),
    "beyond the end": safetensors({"a": entry(128, 192)}),
    "far beyond the end": safetensors({"a": entry(1 << 62, (1 << 62) + 64)}),
    "another size": safetensors({"a": entry(0, 128)}),
    "reversed": safetensors({"a": {"dtype": "U8", "shape": [64], "data_offsets": [64, 0]}}),
    "not aligned": safetensors({"a": entry(32, 96)}),
    "a shape that is not the size": safetensors({"a": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 64]}}),
    "an unknown dtype": safetensors({"a": {"dtype": "F99", "shape": [64], "data_offsets": [0, 64]}}),
}


@pytest.mark.parametrize("case", WEIGHT_MEMBERS)
def test_hostile_weights_are_refused(tmp_path, case):
    """The hashes agree: only the header is wrong."""
    path = with_manifest(tmp_path / "x.llmc", lambda m: {**m, "weights": [["a", 64]]}, weights=WEIGHT_MEMBERS[case])
    with pytest.raises(ArtifactError):
        read_everything(path)


@pytest.mark.parametrize(
    "listed", [None, 5, ["a"], [["a"]], [["a", 64, 1]], [[["a"], 64]], [["a", "64"]], [["a", -1]], {"a": 64}], ids=str
)
def test_hostile_lists_of_weights_are_refused(tmp_path, listed):
    path = with_manifest(tmp_path / "x.llmc", lambda m: {**m, "weights": listed}, weights=safetensors({"a": entry(0, 64)}))
    with pytest.raises(ArtifactError):
        read_everything(path)


def test_the_valid_weights_that_the_hostile_ones_differ_from_are_accepted(tmp_path):
    path = with_manifest(tmp_path / "x.llmc", lambda m: {**m, "weights": [["a", 64]]}, weights=safetensors({"a": entry(0, 64)}))
    _, tensors = read_everything(path)
    assert tensors["a"][1] == 64


@pytest.mark.parametrize("missing", ["model", "targets", "memory_plan", "weights"])
def test_loading_without_a_part_of_the_manifest_is_an_error_of_the_artifact(tiny, tmp_path, missing):
    """A self-consistent artifact of a broken writer: an llmc error, not a KeyError."""
    import llmc

    with open_artifact(tiny) as real:
        files = {n: real.read(n) for n in real.members if n != MANIFEST}
        manifest = {k: v for k, v in real.manifest.items() if k != missing}
    raw = json.dumps(manifest).encode()
    ordered = [(MANIFEST, raw), *[(n, files[n]) for n in real.members if n != MANIFEST]]
    with pytest.raises(LlmcError):
        llmc.load(made_by_hand(tmp_path / "x.llmc", ordered), kv_cache="1MiB").close()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"\0" * 10_000, b"PK\5\6" + bytes(18), bytes(range(256)) * 64],
    ids=["empty", "two bytes", "zeros", "empty zip", "pattern"],
)
def test_files_that_are_no_artifacts(tmp_path, content):
    (tmp_path / "x.llmc").write_bytes(content)
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path / "x.llmc")


def test_an_ordinary_zip_is_no_artifact(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.llmc", "w") as archive:
        archive.writestr(MANIFEST, "{}")
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path / "x.llmc")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        open_artifact(tmp_path / "none.llmc")
    with pytest.raises(ArtifactError, match="not a file"):
        open_artifact(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path):
    """The old file stays, no draft lies about."""
    target = tmp_path / "old.llmc"
    target.write_bytes(b"old")

    with pytest.raises(TypeError):
        write_artifact(target, dict(BASE), {"a": "text is not bytes"}, None)  # type: ignore[dict-item]
    assert [p.name for p in tmp_path.iterdir()] == ["old.llmc"] and target.read_bytes() == b"old"
    with pytest.raises(UsageError):
        write_artifact(tmp_path / "no" / "folder.llmc", dict(BASE), {}, None)


def test_the_same_content_gives_the_same_bytes(tmp_path):
    out = []
    for name in ("a", "b"):
        weights = WeightsFile(tmp_path)
        weights.add("t", b"123")
        write_artifact(
            tmp_path / name, {**BASE, "weights": weights.listed}, dict(reversed(FILES.items())) if name == "b" else FILES, weights
        )
        weights.close()
        out.append((tmp_path / name).read_bytes())
    assert out[0] == out[1]
