"""lm-evaluation-harness against `llmc run`: its log-likelihoods, texts and scores are those of its own `hf` backend (`make test-interop`)."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from models import original_logits
from server import tiny
from server.conftest import serving
from tolerances import LOGITS

DOCS = Path(__file__).parents[2] / "docs" / "eval.md"
TASK = "ships"
CONTEXTS = [
    "The keeper",
    "def greatest(a, b):\n    return",
    "Der Fluss trat über die",
    "1, 1, 2, 3,",
    "Once upon a time there was a ",
]
CONTINUATIONS = [" of the lighthouse", " a", " größer als ß", " counted ships every evening and read the list aloud.\n\nThen"]
QUESTIONS = [f"{c} {i}, {i * 7 % 13}. Which of them" for i in range(8) for c in ("The ship", "Das Boot", "for n in", "A bell:")]
CHOICES = [" waits", " is the smallest one of all", ": none", " rings and reads aloud"]


@pytest.fixture(scope="module")
def artifact():
    return tiny.compiled(tiny.checkpoint(), "model", dtype="f32")


@pytest.fixture(scope="module")
def server(interop_python, artifact):
    with serving(artifact, "--max-batch", "16") as running:
        yield running


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with a multiple-choice task, its questions in a local file; the "right" answers are arbitrary, as the model is."""
    where = tmp_path_factory.mktemp("tasks")
    lines = [{"question": q, "choices": CHOICES, "answer": i % len(CHOICES)} for i, q in enumerate(QUESTIONS)]
    (where / "ships.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(where / "ships.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }
    (where / "ships.yaml").write_text(json.dumps(made))
    return where


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Nothing is looked up on a hub, and the harness caches in a folder of this run; its threads leave the server a core."""
    return {
        **os.environ,
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def encode():
    from tokenizers import Tokenizer

    inner = Tokenizer.from_file(str(tiny.checkpoint() / "tokenizer.json"))
    return lambda text: inner.encode(text).ids


@pytest.fixture(scope="module")
def pairs(server, encode):
    """Contexts with continuations of many lengths, one too long for the context window, and some that the model itself would write."""
    made = [(c, k) for c in CONTEXTS for k in CONTINUATIONS] + [("", "The keeper"), (tiny.TEXT * 2, " of the lighthouse")]
    for question in QUESTIONS:
        choice = server.complete(question, max_tokens=2)["choices"][0]
        if encode(question + choice["text"]) == [*encode(question), *choice["token_ids"]]:
            made.append((question, choice["text"]))
    return made


@pytest.fixture(scope="module")
def job(server, tasks, pairs):
    """The harness keeps a token of `max_length` free and feeds what remains less one, where `hf` feeds all of its own."""
    folder, context = str(tiny.checkpoint()), tiny.CONTEXT
    whole = server.complete(CONTEXTS[0], max_tokens=24)["choices"][0]["text"]
    return {
        "hf": {"pretrained": folder, "dtype": "float32", "max_length": context - 2, "device": "cpu"},
        "api": {
            "model": "model",
            "base_url": f"{server.url}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": folder,
            "add_bos_token": True,
            "max_length": context,
        },
        "pairs": pairs,
        "texts": [tiny.TEXT * 2, "One line.", tiny.CORPUS[2]],
        "generate": [
            *((c, {"until": [whole[12:14]], "max_gen_toks": 24, "do_sample": False}) for c in CONTEXTS),
            *((c, {"until": [], "max_gen_toks": 9, "do_sample": False}) for c in CONTEXTS),
        ],
        "tasks": str(tasks),
        "task": TASK,
    }


@pytest.fixture(scope="module")
def judged(interop_python, server, job, environment, tmp_path_factory):
    """{"hf": answers, "api": {"BATCH,CONCURRENT": answers}, "chat": {"hf" and "api": a task's}}"""
    where = tmp_path_factory.mktemp("judged")
    (where / "job.json").write_text(json.dumps(job))
    worker = Path(__file__).parent / "lm_eval_worker.py"
    subprocess.run(
        [interop_python, str(worker), str(where / "job.json"), str(where / "out.json")],
        check=True,
        env=environment,
        cwd=where,
        timeout=600,
    )
    return json.loads((where / "out.json").read_text())


@pytest.fixture(scope="module")
def served(judged):
    return judged["api"]["1,1"]


@pytest.fixture(scope="module")
def bound(encode):
    """bound(log-likelihood, its tokens) → how far another float32 implementation may lie from it: docs/tolerances.md."""
    largest = max(1.0, float(abs(original_logits(tiny.checkpoint(), encode(tiny.TEXT)[:512])).max()))
    return lambda value, tokens: LOGITS["f32", "none"] * largest * math.sqrt(2 * tokens) + 2**-23 * abs(value)


def test_loglikelihoods_are_those_of_the_hf_backend(judged, served, pairs, encode, bound):
    greedy = [g for _, g in judged["hf"]["loglikelihood"]]
    assert greedy.count(True) > 5 and greedy.count(False) > 5, "one of the two answers is not tested"
    assert len(served["loglikelihood"]) == len(pairs)
    for (context, text), (wanted, flag), (got, own) in zip(
        pairs, judged["hf"]["loglikelihood"], served["loglikelihood"], strict=True
    ):
        tokens = len(encode(context + text)) - len(encode(context.rstrip(" ")))
        assert abs(got - wanted) < bound(wanted, tokens), (context[-30:], text)
        assert own is flag, (context[-30:], text)


def test_rolling_loglikelihoods_are_those_of_the_hf_backend(judged, served, job, encode, bound):
    assert len(encode(job["texts"][0])) > 1.5 * tiny.CONTEXT, "one window"
    for text, wanted, got in zip(job["texts"], judged["hf"]["rolling"], served["rolling"], strict=True):
        assert abs(got - wanted) < bound(wanted, len(encode(text))), text[:30]


def test_greedy_texts_are_those_of_the_hf_backend(judged, served, job):
    assert served["generated"] == judged["hf"]["generated"]
    (context, settings), *_ = job["generate"]
    assert served["generated"][0] and not any(s in served["generated"][0] for s in settings["until"]), context


def test_batches_and_concurrency_change_no_bit(judged, served):
    assert set(judged["api"]) == {"1,1", "1,4", "4,1", "4,4"}
    for name, answers in judged["api"].items():
        assert answers == served, name


@pytest.mark.parametrize("chat", [False, True])
def test_a_task_has_the_scores_of_the_hf_backend(judged, served, bound, encode, chat):
    wanted, got = (judged["chat"]["hf"], judged["chat"]["api"]) if chat else (judged["hf"]["task"], served["task"])
    assert got["figures"] == wanted["figures"]
    assert 0 < wanted["figures"]["acc,none"] < 1
    assert len(got["samples"]) == len(QUESTIONS)
    lengths = [len(encode("x" + c)) - len(encode("x")) for c in CHOICES]
    for ours, theirs in zip(got["samples"], wanted["samples"], strict=True):
        for (mine, greedy), (value, flag), tokens in zip(ours, theirs, lengths, strict=True):
            assert abs(float(mine) - float(value)) < bound(float(value), tokens)
            assert greedy == flag


@pytest.mark.parametrize("key", ["", "a-secret"])
def test_the_command_of_the_docs(interop_python, artifact, served, tasks, environment, tmp_path, key):
    """The command as docs/eval.md has it, but for the task, the port and the folder."""
    block = re.search(r"^```sh\n(lm_eval .*?)```", DOCS.read_text(), re.M | re.S)
    assert block, f"{DOCS.name} has no lm_eval command"
    with serving(artifact, "--max-batch", "16", *(("--api-key", key) if key else ()), key=key) as running:
        command = block[1].replace("arc_easy,hellaswag", TASK).replace("./original", str(tiny.checkpoint()))
        command = command.replace("http://127.0.0.1:8000/", running.url + "/")
        assert TASK in command and running.url in command and str(tiny.checkpoint()) in command
        name, *arguments = shlex.split(command.replace("\\\n", " "))
        assert name == "lm_eval"
        subprocess.run(
            [interop_python, "-m", name, *arguments, "--include_path", str(tasks), "--output_path", str(tmp_path / "found")],
            check=True,
            env={**environment, **({"OPENAI_API_KEY": key} if key else {})},
            cwd=tmp_path,
            timeout=300,
        )
    (found,) = (tmp_path / "found").rglob("results_*.json")
    results = json.loads(found.read_text())["results"][TASK]
    assert {k: results[k] for k in served["task"]["figures"]} == served["task"]["figures"]
