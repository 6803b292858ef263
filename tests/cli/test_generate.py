"""llmc generate and llmc chat."""

from __future__ import annotations

import io
import sys

import pytest
from server import tiny

PROMPT = "The keeper of the lighthouse"
KEYS = {"text", "token_ids", "prompt_tokens", "finish_reason", "seconds", "decode_tok_s"}


@pytest.fixture
def generate(llmc, artifact):
    return lambda *args, path=artifact: llmc("generate", path, *args, "--json").json


@pytest.fixture(scope="module")
def model():
    import llmc

    with llmc.load(tiny.artifact(), threads=1) as loaded:
        yield loaded


def test_the_answer(generate, model):
    value = generate("--prompt", PROMPT, "--max-tokens", 20)
    expected = model.generate(PROMPT, max_tokens=20)
    assert set(value) >= KEYS
    assert (value["text"], value["token_ids"], value["prompt_tokens"], value["finish_reason"]) == (
        expected.text,
        expected.token_ids,
        expected.prompt_tokens,
        "length",
    )
    assert set(value["seconds"]) == {"load", "first_token", "total"}
    assert 0 < value["seconds"]["load"] <= value["seconds"]["first_token"] <= value["seconds"]["total"]


def test_without_json_the_text_is_streamed_to_stdout(llmc, artifact, model):
    assert (
        llmc("generate", artifact, "--prompt", PROMPT, "--max-tokens", "20").out
        == model.generate(PROMPT, max_tokens=20).text + "\n"
    )


def test_threads_do_not_change_a_bit(generate):
    assert (
        len(
            {tuple(generate("--prompt", PROMPT, "--threads", n, "--temperature", 1, "--seed", 2)["token_ids"]) for n in (1, 2, 3)}
        )
        == 1
    )


def test_a_prompt_from_a_file_and_from_standard_input(generate, here, monkeypatch):
    (here / "p.txt").write_text(PROMPT + "\nzwölf", encoding="utf-8")
    wanted = generate("--prompt", PROMPT + "\nzwölf")["token_ids"]
    assert generate("--prompt-file", "p.txt")["token_ids"] == wanted
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\nzwölf"))
    assert generate("--prompt-file", "-")["token_ids"] == wanted


def test_a_prompt_file_that_is_none(fails, artifact, here):
    fails(4, "generate", artifact, "--prompt-file", "none.txt")
    (here / "p.txt").write_bytes(b"\xff\xfe")
    fails(4, "generate", artifact, "--prompt-file", "p.txt")


def test_token_ids_as_a_prompt(generate, model):
    ids = model.tokenizer.encode(PROMPT)
    value = generate("--input-ids", ",".join(map(str, ids)))
    assert value["token_ids"] == generate("--prompt", PROMPT)["token_ids"]
    assert value["prompt_tokens"] == len(ids)
    assert generate("--input-ids", ", ".join(map(str, ids)))["token_ids"] == value["token_ids"]


def test_a_seed_makes_sampling_repeatable(generate):
    a, b, c = (generate("--prompt", PROMPT, "--temperature", "1", "--seed", s)["token_ids"] for s in (1, 1, 2))
    assert a == b != c
    assert (
        generate("--prompt", PROMPT, "--temperature", "1", "--seed", "1", "--top-p", "0.000001")["token_ids"]
        == generate("--prompt", PROMPT)["token_ids"]
    )


def test_stop(generate):
    whole = generate("--prompt", PROMPT, "--max-tokens", 40)
    stop = whole["text"][7:10]
    value = generate("--prompt", PROMPT, "--max-tokens", 40, "--stop", "\x01never", "--stop", stop)
    assert value["text"] == whole["text"][: whole["text"].index(stop)]
    assert value["finish_reason"] == "stop"


def test_a_final_end_token_is_in_the_ids_and_not_in_the_text(generate, model):
    for seed in range(40):
        value = generate("--prompt", PROMPT, "--temperature", "1.5", "--seed", seed, "--max-tokens", 300)
        if value["finish_reason"] == "stop":
            break
    assert value["finish_reason"] == "stop"
    assert value["token_ids"][-1] == 2 and 2 not in value["token_ids"][:-1]
    assert "</s>" not in value["text"]
    assert value["text"] == model.tokenizer.decode(value["token_ids"])


def test_chat_applies_the_template_without_a_second_bos(generate, model):
    from llmc.runtime.chat_template import render_chat

    text = render_chat(model.tokenizer.chat_template, [{"role": "user", "content": "Hello"}], model.tokenizer.special_tokens())
    ids = model.tokenizer.encode(text, special=False)
    assert ids.count(1) == 1
    value = generate("--prompt", "Hello", "--chat")
    assert value["prompt_tokens"] == len(ids)
    assert value["token_ids"] == model.generate(ids, max_tokens=128).token_ids
    assert "Hello" not in value["text"] or True


def test_a_prompt_that_is_too_long_names_the_limit(fails, artifact):
    assert str(tiny.CONTEXT) in fails(2, "generate", artifact, "--input-ids", ",".join(["5"] * tiny.CONTEXT))


def test_a_prompt_longer_than_a_step():
    """In a process of its own: more than 512 tokens are computed in several steps."""
    import json
    import subprocess

    ids = [5 + i % 300 for i in range(700)]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from llmc.cli.main import main; main()",
            "generate",
            str(tiny.artifact()),
            "--input-ids",
            ",".join(map(str, ids)),
            "--max-tokens",
            "2",
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-300:])
    assert json.loads(done.stdout)["prompt_tokens"] == 700


def test_without_a_tokenizer(llmc, fails, generate):
    path = tiny.without_tokenizer()
    value = generate("--input-ids", "5,6,7", "--max-tokens", 4, path=path)
    assert value["text"] is None and len(value["token_ids"]) == 4
    assert llmc("generate", path, "--input-ids", "5,6,7", "--max-tokens", "4").out.split() == [str(t) for t in value["token_ids"]]
    fails(2, "generate", path, "--prompt", "x")
    fails(2, "generate", path, "--prompt", "x", "--chat")
    fails(2, "generate", path, "--input-ids", "5", "--stop", "x")
    assert any("no tokenizer" in n for n in llmc("inspect", path, "--json").json["notes"])


def test_chat_in_a_pipe(llmc, artifact, monkeypatch, here):
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("Hello\n/save talk.txt\n/system Be brief.\nTwo \\\nlines\n/new\n/unknown\n\n/exit\nnot read\n")
    )
    done = llmc("chat", artifact, "--max-tokens", "5", "--seed", "1")
    assert len(done.out) > 2
    assert (here / "talk.txt").read_text().startswith("user: Hello\n\nassistant: ")
    assert "/save FILE" in done.err


def test_chat_without_a_template_is_refused(llmc):
    llmc("chat", tiny.without_tokenizer(), status=2)
