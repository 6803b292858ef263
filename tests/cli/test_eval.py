"""llmc eval: windows, perplexity against transformers' own logits, divergence, and teacher-forced logits."""

from __future__ import annotations

import numpy as np
import pytest
from server import tiny

KEYS = {"perplexity", "nll", "tokens", "windows"}
DIVERGENCE = {"kl_mean", "kl_median", "kl_p99", "kl_max", "top1"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    where = tmp_path_factory.mktemp("text") / "text.txt"
    where.write_text(tiny.TEXT, encoding="utf-8")
    return where


@pytest.fixture
def judge(llmc, text):
    return lambda *args, path: llmc("eval", path, "--text", text, *args, "--json").json


def by_transformers(source, text, size, bos, limit=None):
    """nll and number of predictions, by the contract's words: tokens without special ones, whole windows, each after a BOS if there is one."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    cut = [ids[i : i + size] for i in range(0, len(ids) // size * size, size)][:limit]
    total = count = 0
    with torch.no_grad():
        for window in cut:
            given = ([1] if bos else []) + window
            scores = torch.log_softmax(model(torch.tensor([given])).logits[0].double(), -1)
            total -= sum(scores[i, t].item() for i, t in enumerate(given[1:]))
            count += len(given) - 1
    return total / count, count, len(cut)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("args", [["--window", "100"], ["--window", "64", "--windows", "3"], ["--window", "511"]])
def test_perplexity_is_that_of_transformers(judge, source, bos, args):
    value = judge(*args, path=tiny.artifact() if bos else tiny.without_bos())
    assert set(value) == KEYS
    nll, count, windows = by_transformers(source, tiny.TEXT, int(args[1]), bos, int(args[3]) if len(args) > 2 else None)
    assert (value["tokens"], value["windows"]) == (count, windows)
    assert count == windows * (int(args[1]) - (not bos))
    assert value["nll"] == pytest.approx(nll, rel=1e-4)
    assert value["perplexity"] == pytest.approx(np.exp(nll), rel=1e-3)


def test_the_default_window_is_512(judge, artifact, source):
    value = judge(path=artifact)
    assert value["tokens"] == 512 * value["windows"]
    assert value["perplexity"] == pytest.approx(np.exp(by_transformers(source, tiny.TEXT, 512, True)[0]), rel=1e-3)


def test_the_reference_of_a_float32_artifact_is_itself(judge, artifact, source):
    value = judge("--window", "64", "--windows", "4", "--reference", source, path=artifact)
    assert set(value) == KEYS | DIVERGENCE
    assert value["kl_max"] < 1e-6 and value["top1"] > 0.99
    assert 0 <= value["kl_median"] <= value["kl_p99"] <= value["kl_max"]
    plain = judge("--window", "64", "--windows", "4", path=artifact)
    assert value["nll"] == pytest.approx(plain["nll"], rel=1e-6)
    assert value["tokens"] == plain["tokens"] == 256


def test_the_divergence_of_a_quantized_artifact(llmc, judge, source, here):
    llmc("compile", source, "-o", "a.llmc", "--target", "cpu:native", "--quant", "int4", "--json")
    value = judge("--window", "64", "--windows", "4", "--reference", source, path="a.llmc")
    assert value["kl_mean"] > 1e-4
    assert value["top1"] < 1


def test_fail_if(llmc, judge, artifact, text, source):
    base = ["eval", artifact, "--text", text, "--window", "64", "--windows", "2"]
    found = llmc(*base, "--json").json["nll"]
    assert llmc(*base, "--fail-if", f"nll>{found + 1}", "--fail-if", "tokens != 128", "--json").json["nll"] == found
    for gate in (f"nll>{found - 1}", "tokens==128", "windows <= 2", "perplexity >= 1e0", "nll!=0"):
        value = llmc(*base, "--fail-if", "nll<0", "--fail-if", gate, "--json", status=1).json
        assert value["error"]["type"] == "GateFailed"
        assert gate.split("=")[0].split(">")[0].split("!")[0].split("<")[0].strip() in value["error"]["message"]
    shown = llmc(*base, "--fail-if", "tokens==128", status=1)
    assert "perplexity" in shown.out
    llmc(*base, "--reference", source, "--fail-if", "kl_mean>0.1", "--fail-if", "top1<0.9", "--json")


@pytest.mark.parametrize("content", [b"", b"too short", b"\xff\xfe\xfd" * 500])
def test_a_text_that_cannot_be_judged_is_4(fails, artifact, here, content):
    (here / "t.txt").write_bytes(content)
    fails(4, "eval", artifact, "--text", "t.txt")
    fails(4, "eval", artifact, "--text", "none.txt")


def test_a_reference_with_another_vocabulary_is_4(fails, artifact, text, here, tmp_path):
    other = tiny.save_model(tmp_path / "other", vocab_size=512)
    fails(4, "eval", artifact, "--text", text, "--window", "32", "--windows", "1", "--reference", other)
    fails(4, "eval", artifact, "--text", text, "--reference", tmp_path / "none")


def test_teacher_forced_logits_are_the_same_by_every_schedule(llmc, artifact, source, here, random):
    """The whole sequence at once, token by token, in odd chunks, and under random chunks with preemptions: equal to the bit."""
    from safetensors.numpy import load_file, save_file

    ids = random.integers(6, tiny.VOCAB, (3, 75))
    ids[2, :40] = ids[0, :40]
    save_file({"input_ids": ids.astype(np.int64)}, here / "ids.safetensors")
    made = {}
    for name, args in {
        "whole": [],
        "one": ["--chunk", "1"],
        "seven": ["--chunk", "7"],
        "seed": ["--schedule-seed", "3"],
        "seed4": ["--schedule-seed", "4", "--threads", "1"],
    }.items():
        value = llmc(
            "eval", artifact, "--input-ids", "ids.safetensors", "--logits-out", f"{name}.safetensors", *args, "--json"
        ).json
        assert value["shape"] == [3, 75, tiny.VOCAB]
        made[name] = load_file(here / f"{name}.safetensors")["logits"]
        assert made[name].dtype == np.float32
        np.testing.assert_array_equal(made[name].view(np.uint32), made["whole"].view(np.uint32), err_msg=name)
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(made["whole"], expected, atol=1e-3)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"other": np.zeros((1, 4), np.int64)},
        {"input_ids": np.zeros(4, np.int64)},
        {"input_ids": np.zeros((1, 4), np.float32)},
        {"input_ids": np.zeros((0, 4), np.int64)},
        {"input_ids": np.zeros((1, tiny.CONTEXT + 1), np.int64)},
        {"input_ids": np.full((1, 4), tiny.VOCAB)},
        {"input_ids": np.full((1, 4), -1)},
    ],
    ids=str,
)
def test_wrong_ids_are_refused(llmc, artifact, here, tensors):
    from llmc.cli.main import run
    from safetensors.numpy import save_file

    save_file(tensors, here / "ids.safetensors")
    assert run(["eval", str(artifact), "--input-ids", "ids.safetensors", "--logits-out", "out.safetensors"]) in (2, 4)
    assert not (here / "out.safetensors").exists()


def test_ids_that_are_no_file_are_4(fails, artifact, here):
    (here / "ids.safetensors").write_text("x")
    for path in ("none.safetensors", "ids.safetensors", __file__):
        fails(4, "eval", artifact, "--input-ids", path, "--logits-out", "out.safetensors")


def test_export_dense_holds_the_weights_that_the_artifact_computes_with(llmc, fails, source, here):
    """transformers, given the exported weights, judges as the quantized artifact does (float activations)."""
    from safetensors.numpy import load_file

    value = llmc("export", "dense", "--from", source, "--format", "dense", "--json").json
    same, original = load_file(here / "dense" / "model.safetensors"), load_file(source / "model.safetensors")
    assert set(same) == set(original) and value["tensors"] == len(original)
    assert all(np.array_equal(same[n], original[n]) for n in original)
    args = ("--quant", "int4:g32/f32", "--scheme", "lm_head=f32", "--scheme", "model.embed_tokens=f32")
    llmc("export", "d4", "--from", source, "--format", "dense", *args, "--json")
    rounded = load_file(here / "d4" / "model.safetensors")
    assert {v.dtype.name for v in rounded.values()} == {"float32"}
    changed = {n for n in original if not np.array_equal(rounded[n], original[n])}
    assert changed == {n for n in original if "proj" in n}
    assert (here / "d4" / "tokenizer.json").exists() and (here / "d4" / "config.json").exists()
    fails(2, "export", "d4", "--from", source, "--format", "dense")
    (here / "t.txt").write_text(tiny.TEXT, encoding="utf-8")
    llmc("compile", source, "-o", "a.llmc", "--target", "cpu:native", *args, "--json")
    mine = llmc("eval", "a.llmc", "--text", "t.txt", "--window", "64", "--json").json["nll"]
    theirs = by_transformers(here / "d4", tiny.TEXT, 64, True)[0]
    assert mine == pytest.approx(theirs, rel=1e-3)
