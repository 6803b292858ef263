"""Damaged, altered and hostile artifacts; verify, rebuild and signatures."""

from __future__ import annotations

import os

import pytest
from server import tiny

READERS = [
    ["inspect"],
    ["verify"],
    ["explain"],
    ["generate", "--prompt", "x", "--max-tokens", "2"],
    ["eval", "--text", __file__],
    ["sign", "--private-key", "none.pem"],
    ["run", "--port", "0"],
    ["chat"],
    ["bench"],
]


def command(reader, path):
    return [reader[0], path, *reader[1:]]


@pytest.fixture(params=READERS, ids=lambda r: r[0])
def reader(request):
    return request.param


def test_a_missing_file_and_a_folder_are_4(fails, here, reader, tmp_path):
    fails(4, *command(reader, "no.llmc"))
    fails(4, *command(reader, tmp_path))


@pytest.mark.parametrize("keep", [0, 10, 5000, 0.5, -1])
def test_a_truncated_file_is_4(fails, here, artifact, reader, keep):
    data = artifact.read_bytes()
    (here / "a.llmc").write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    fails(4, *command(reader, "a.llmc"))


def test_text_and_another_zip_are_4(fails, here, reader):
    import zipfile

    (here / "a.llmc").write_text("hello " * 5000)
    fails(4, *command(reader, "a.llmc"))
    with zipfile.ZipFile(here / "b.llmc", "w") as made:
        made.writestr("manifest.json", "{}" * 200)
    fails(4, *command(reader, "b.llmc"))


def test_an_altered_member_is_4(fails, here, artifact, reader):
    data = bytearray(artifact.read_bytes())
    data[data.index(b"#include")] ^= 1
    (here / "a.llmc").write_bytes(data)
    fails(4, *command(reader, "a.llmc"))


HOSTILE = {
    "no JSON": lambda m: b"nope" * 50,
    "a list": lambda m: [],
    "null": lambda m: None,
    "no members": lambda m: {k: v for k, v in m.items() if k != "members"},
    "members is a number": lambda m: {**m, "members": 5},
    "members are numbers": lambda m: {**m, "members": [5]},
    "members without names": lambda m: {**m, "members": [{}]},
    "a member without a hash": lambda m: {**m, "members": [{"name": e["name"], "bytes": e["bytes"]} for e in m["members"]]},
    "another schema": lambda m: {**m, "schema": 99},
    "a schema of another type": lambda m: {**m, "schema": [1]},
    "nothing else": lambda m: {"schema": m["schema"], "members": m["members"]},
    "a model that is none": lambda m: {**m, "model": 3},
    "a context of 0": lambda m: {**m, "model": {**m["model"], "context": 0}},
    "a context that is text": lambda m: {**m, "model": {**m["model"], "context": "x"}},
    "a huge vocabulary": lambda m: {**m, "model": {**m["model"], "vocab": 1 << 40}},
    "another vocabulary": lambda m: {**m, "model": {**m["model"], "vocab": m["model"]["vocab"] * 2}},
    "targets that are none": lambda m: {**m, "targets": 5},
    "a target without a member": lambda m: {**m, "targets": [{**m["targets"][0], "member": "kernels/none.so"}]},
    "weights in another order": lambda m: {**m, "weights": m["weights"][::-1]},
    "too few weights": lambda m: {**m, "weights": m["weights"][:1]},
    "weights that are none": lambda m: {**m, "weights": [["a"]]},
    "larger weights": lambda m: {**m, "weights": [[n, s * 2] for n, s in m["weights"]]},
    "a negative memory plan": lambda m: {**m, "memory_plan": dict.fromkeys(m["memory_plan"], -1)},
    "no memory plan": lambda m: {**m, "memory_plan": {}},
    "more tables of blocks": lambda m: {**m, "memory_plan": {**m["memory_plan"], "reaches": [0, 9]}},
    "no table of blocks": lambda m: {**m, "memory_plan": {**m["memory_plan"], "reaches": []}},
    "a canary that is none": lambda m: {**m, "canary": [1]},
    "a canary without sequences": lambda m: {**m, "canary": {"sequences": 5}},
    "a canary outside the vocabulary": lambda m: {**m, "canary": {**m["canary"], "sequences": [[1 << 30], [1]]}},
    "a source without a hash": lambda m: {**m, "source": {}},
    "a model without an architecture": lambda m: {**m, "model": {k: v for k, v in m["model"].items() if k != "architecture"}},
    "parameters that are text": lambda m: {**m, "model": {**m["model"], "parameters": "x"}},
    "a context without end": lambda m: {**m, "model": {**m["model"], "context": 2**70}},
    "an end token that is none": lambda m: {**m, "model": {**m["model"], "eos_token_id": 1.5}},
    "a toolchain that is none": lambda m: {**m, "toolchain": {"compiler": None}},
    "kernels without names": lambda m: {**m, "targets": [{**t, "kernels": [{}]} for t in m["targets"]]},
    "targets without kernels": lambda m: {**m, "targets": [{**t, "kernels": None} for t in m["targets"]]},
    "a level that nobody knows": lambda m: {**m, "targets": [{**m["targets"][0], "isa": "bogus"}]},
    "a cache of no dtype": lambda m: {**m, "model": {k: v for k, v in m["model"].items() if k != "kv_dtype"}},
}


IN_A_PROCESS = ("another vocabulary", "weights in another order", "too few weights", "a huge vocabulary")


@pytest.mark.parametrize("name", [n for n in HOSTILE if n not in IN_A_PROCESS])
def test_a_hostile_manifest_is_4(llmc, here, artifact, name):
    """Every hash is right, but the manifest does not say what an artifact's says: verify refuses it, and nothing crashes."""
    tiny.rewritten(artifact, here / "a.llmc", HOSTILE[name])
    llmc("verify", "a.llmc", "--json", status=4)
    from llmc.cli.main import run

    for reader in (["inspect", "a.llmc"], ["explain", "a.llmc"], ["generate", "a.llmc", "--prompt", "x", "--max-tokens", "2"]):
        assert run(reader) in (0, 4), reader


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_a_hostile_manifest_does_not_crash_a_process(here, artifact, name):
    import subprocess
    import sys

    tiny.rewritten(artifact, here / "a.llmc", HOSTILE[name])
    done = subprocess.run(
        [sys.executable, "-c", "from llmc.cli.main import main; main()", "verify", "a.llmc"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4, (done.returncode, done.stderr[-500:])


def test_verify_finds_every_flipped_bit(llmc, here, artifact, random):
    """Bits all over the file, and many in the places that a careless reader would not look at."""
    data = artifact.read_bytes()
    from llmc.runtime.artifact import open_artifact

    with open_artifact(artifact) as opened:
        members = list(opened.members.values())
    places = [int(random.integers(len(data))) for _ in range(60)]
    for member in members:
        header = data.rindex(b"PK\3\4", 0, member.offset)
        places += [
            header + int(random.integers(30)),
            int(random.integers(header + 30, member.offset)),
            member.offset - 1,
            member.offset,
            member.offset + member.size - 1,
        ]
    directory = data.rindex(b"PK\1\2", 0, len(data))
    directory = data.index(b"PK\1\2", members[-1].offset + members[-1].size - 1)
    places += [int(random.integers(directory, len(data))) for _ in range(60)]
    places += list(range(len(data) - 64 - 22, len(data), 5)) + list(range(0, 64, 4))
    gaps = [p for p in places if p < len(data)]
    assert len(gaps) >= 200
    for place in gaps:
        altered = bytearray(data)
        altered[place] ^= 1 << int(random.integers(8))
        (here / "a.llmc").write_bytes(altered)
        value = llmc("verify", "a.llmc", "--json", status=4).json
        assert value["exit"] == 4, place


@pytest.mark.parametrize("change", [lambda d: d + b"\0", lambda d: b"\0" + d, lambda d: d + d, lambda d: d[:100] + d[101:]])
def test_verify_finds_what_is_added_or_left_out(fails, here, artifact, change):
    (here / "a.llmc").write_bytes(change(artifact.read_bytes()))
    fails(4, "verify", "a.llmc")


def test_verify_of_a_good_file(llmc, artifact):
    value = llmc("verify", artifact, "--json").json
    assert set(value) == {"ok", "checks"}
    assert value["ok"] is True
    assert all(set(c) == {"name", "ok", "detail"} and c["ok"] for c in value["checks"])
    assert any(c["name"].startswith("canary") for c in value["checks"])
    assert "ok  " in llmc("verify", artifact).out


def test_a_rebuild_gives_the_same_bytes(llmc, artifact):
    value = llmc("verify", artifact, "--rebuild", "--json").json
    assert value["ok"] and sum(c["name"].startswith("rebuild") for c in value["checks"]) == 2


def test_a_bad_canary_is_1(llmc, here, artifact):
    tiny.rewritten(
        artifact, here / "a.llmc", lambda m: {**m, "canary": {**m["canary"], "sha256": ["0" * 64, *m["canary"]["sha256"][1:]]}}
    )
    value = llmc("verify", "a.llmc", "--json", status=1).json
    assert value["ok"] is False
    assert [c["name"].split()[0] for c in value["checks"] if not c["ok"]] == ["canary"]
    assert "FAIL canary" in llmc("verify", "a.llmc", status=1).out


def test_other_weights_fail_the_canary(llmc, here, artifact):
    """Whoever replaces the weights and mends every hash still does not get past the canary."""
    from llmc.runtime.artifact import WEIGHTS, open_artifact

    with open_artifact(artifact) as opened:
        data = bytearray(opened.read(WEIGHTS))
    data[-5000:] = bytes(5000)
    tiny.rewritten(artifact, here / "a.llmc", weights_model_safetensors=bytes(data))
    assert not llmc("verify", "a.llmc", "--json", status=1).json["ok"]


def test_other_kernels_fail_the_rebuild(llmc, here, artifact):
    from llmc.runtime.artifact import open_artifact

    with open_artifact(artifact) as opened:
        text = opened.read("kernels/cpu/source/step.c")
    tiny.rewritten(artifact, here / "a.llmc", kernels_cpu_source_step_c=text + b"/* more */\n")
    assert llmc("verify", "a.llmc", "--json").json["ok"]
    value = llmc("verify", "a.llmc", "--rebuild", "--json", status=1).json
    assert [c["name"] for c in value["checks"] if not c["ok"]] == ["rebuild sources"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: {**m, "llmc": "0.0.7"}, "0.0.7"),
        (lambda m: {**m, "toolchain": {**m["toolchain"], "compiler": "ziglang 0.1.2"}}, "0.1.2"),
        (lambda m: {**m, "toolchain": {**m["toolchain"], "compiler": "gcc (GCC) 14"}}, "gcc"),
    ],
)
def test_a_rebuild_by_other_tools_is_5_and_names_the_version(fails, here, artifact, change, word):
    tiny.rewritten(artifact, here / "a.llmc", change)
    assert word in fails(5, "verify", "a.llmc", "--rebuild")


def test_inspect(llmc, artifact):
    value = llmc("inspect", artifact, "--json").json
    assert {"schema", "source", "model", "targets", "quant", "memory", "conformance", "members"} <= set(value)
    assert len(value["source"]["sha256"]) == 64
    assert {"architecture", "parameters", "context", "vocab"} <= set(value["model"])
    assert value["model"]["context"] == tiny.CONTEXT and value["model"]["vocab"] == tiny.VOCAB
    assert all({"name", "bytes", "kernels"} <= set(t) and all("name" in k for k in t["kernels"]) for t in value["targets"])
    assert all(set(r) == {"requests", "context", "bytes"} for r in value["memory"])
    assert all(set(m) == {"name", "bytes", "sha256"} for m in value["members"])
    assert str(tiny.CONTEXT) in llmc("inspect", artifact).out


def test_inspect_and_explain_need_no_torch(artifact):
    """What reads an artifact runs where nothing but the runtime is installed."""
    import subprocess
    import sys

    code = "import sys; from llmc.cli.main import run; r = run(sys.argv[1:]); assert not {'torch', 'transformers', 'yaml', 'safetensors'} & set(sys.modules), 'imported'; sys.exit(r)"
    for args in (
        ["inspect", artifact],
        ["explain", artifact],
        ["verify", artifact],
        ["generate", artifact, "--prompt", "x", "--max-tokens", "2"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (args[0], done.stderr[-500:])


def test_explain(llmc, artifact):
    value = llmc("explain", artifact, "--json").json
    assert value["kernels"] and value["targets"]
    shown = llmc("explain", artifact).out
    assert len(value["nodes"]) == sum(k["calls"] for k in value["kernels"])
    for node in value["nodes"]:
        assert f"{node['module'] or 'the model'}: {node['kernel']}" in shown
    assert f"a step of one token, {len(value['nodes'])} calls" in shown
    assert "no target cuda" in llmc("explain", artifact, "--target", "cuda:sm_90", status=5).err


# --- signatures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    where = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (where / f"{name}.pem").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (where / f"{name}.pub").write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    return where


@pytest.fixture
def signed(llmc, here, artifact, keys):
    (here / "a.llmc").write_bytes(artifact.read_bytes())
    value = llmc("sign", "a.llmc", "--private-key", keys / "mine.pem", "--json").json
    assert value["artifact"] == "a.llmc"
    assert value["signature"] == "a.llmc.sig" and (here / "a.llmc.sig").exists()
    return here


def test_a_signature_is_checked(llmc, signed, keys):
    value = llmc("verify", "a.llmc", "--signature", "a.llmc.sig", "--public-key", keys / "mine.pub", "--json").json
    assert [c["ok"] for c in value["checks"] if c["name"] == "signature"] == [True]


def test_another_key_is_1(llmc, signed, keys):
    value = llmc("verify", "a.llmc", "--signature", "a.llmc.sig", "--public-key", keys / "other.pub", "--json", status=1).json
    assert [c["name"] for c in value["checks"] if not c["ok"]] == ["signature"]


def test_another_files_signature_is_1(llmc, signed, keys, artifact):
    tiny.rewritten(artifact, signed / "b.llmc", lambda m: {**m, "notes": ["other"]})
    llmc("verify", "b.llmc", "--signature", "a.llmc.sig", "--public-key", keys / "mine.pub", "--json", status=1)
    (signed / "renamed.llmc").write_bytes((signed / "b.llmc").read_bytes())
    os.replace(signed / "b.llmc", signed / "a.llmc")
    llmc("verify", "a.llmc", "--signature", "a.llmc.sig", "--public-key", keys / "mine.pub", "--json", status=1)


def test_a_renamed_file_keeps_its_signature(llmc, signed, keys):
    os.replace(signed / "a.llmc", signed / "renamed.llmc")
    assert llmc("verify", "renamed.llmc", "--signature", "a.llmc.sig", "--public-key", keys / "mine.pub", "--json").json["ok"]


def test_an_altered_signature_is_1_or_4(llmc, signed, keys):
    from llmc.cli.main import run

    text = (signed / "a.llmc.sig").read_text()
    for altered in (text.replace("a", "b", 1), text[:-50], "", "{}"):
        (signed / "a.llmc.sig").write_text(altered)
        assert run(["verify", "a.llmc", "--signature", "a.llmc.sig", "--public-key", str(keys / "mine.pub")]) in (1, 4)


def test_unusable_keys_are_4(fails, signed, keys):
    (signed / "bad.pem").write_text("no key")
    for key in ("none.pem", "bad.pem", keys / "mine.pub"):
        fails(4, "sign", "a.llmc", "--private-key", key)
    for key in ("none.pem", "bad.pem"):
        fails(4, "verify", "a.llmc", "--signature", "a.llmc.sig", "--public-key", key)
    fails(4, "verify", "a.llmc", "--signature", "none.sig", "--public-key", keys / "mine.pub")
