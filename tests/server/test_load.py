"""Many requests at once, clients that go away, deadlines and priorities; nothing may stay behind."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from server import tiny

LONG = {"prompt": "Once upon", "max_tokens": 1900, "temperature": 0, "ignore_eos": True}
WORDS = tiny.TEXT.split()


def body_of(i):
    """The i-th of 100 requests that have little in common: greedy or sampled, short or long, some with penalties."""
    body = {
        "prompt": " ".join(WORDS[i : i + 1 + i % 37]),
        "max_tokens": 4 + i % 13,
        "return_token_ids": True,
        "temperature": 0 if i % 3 else 1,
        "seed": i,
    }
    return {
        **body,
        **({"presence_penalty": 1.0} if i % 5 == 0 else {}),
        **({"logprobs": 2} if i % 7 == 0 else {}),
        **({"n": 2} if i % 11 == 0 else {}),
    }


def send_raw(port, path, body):
    """A socket with a request written to it."""
    data = json.dumps(body).encode()
    made = socket.create_connection(("127.0.0.1", port))
    made.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return made


def test_a_hundred_at_once_get_what_each_gets_alone(idle):
    """100 requests on a batch of 32: all answered, each with the bits that it gets alone, and every block returned."""
    barrier = threading.Barrier(100)
    with httpx.Client(base_url=idle.url, timeout=120, limits=httpx.Limits(max_connections=100)) as client:

        def ask(i):
            barrier.wait()
            return client.post("/v1/completions", json=body_of(i))

        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(ask, range(100)))
    assert [a.status_code for a in answers] == [200] * 100
    idle.wait_idle(2)
    for i, answer in enumerate(answers):
        if i % 4 == 0:
            assert answer.json()["choices"] == idle.post("/v1/completions", body_of(i))["choices"], f"request {i}"


def test_the_answer_is_that_of_the_python_interface(idle, model):
    made = [idle.post("/v1/completions", {**body_of(i), "n": 1})["choices"][0]["token_ids"] for i in range(0, 60, 6)]
    for i, ids in zip(range(0, 60, 6), made, strict=True):
        body = body_of(i)
        assert (
            ids
            == model.generate(
                body["prompt"],
                max_tokens=body["max_tokens"],
                temperature=body["temperature"],
                seed=body["seed"],
                presence_penalty=body.get("presence_penalty", 0.0),
            ).token_ids
        ), f"request {i}"


def test_a_small_cache_preempts_and_still_gives_the_same(serve, idle):
    blocks = 8
    per_block = 2 * 2 * 32 * (32 + 16) * 4
    with serve(tiny.artifact(), "--max-batch", "16", "--kv-cache", str(blocks * per_block)) as running:
        prompts = [" ".join(WORDS[i : i + 12]) for i in range(12)]
        with ThreadPoolExecutor(12) as pool:
            got = list(pool.map(lambda p: running.complete(p, max_tokens=70)["choices"][0]["token_ids"], prompts))
        assert running.metric("preemptions_total") > 0
        running.wait_idle(2)
        assert got == [idle.complete(p, max_tokens=70)["choices"][0]["token_ids"] for p in prompts]
        answer = running.http.post("/v1/completions", json={"prompt": [5] * 300, "max_tokens": 1})
        assert answer.status_code == 400
        assert "256" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks_within_a_second(idle, path, stream):
    body = {**LONG, "stream": stream, "n": 2}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    client = send_raw(idle.port, path, body)
    if stream:
        assert b"200" in client.recv(400)
    idle.wait_for("requests_running", 1)
    assert idle.metric("cache_usage_ratio") > 0
    client.close()
    idle.wait_idle(1)


def test_the_openai_client_may_close_a_stream(idle):
    stream = idle.openai.completions.create(
        model="tiny", prompt="Once upon", max_tokens=1900, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in range(3):
        next(iter(stream))
    stream.close()
    idle.wait_idle(1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_while_it_waits_is_forgotten(serve, stream):
    """One request at a time: the second leaves before its turn, and must not be computed when the first ends."""
    with serve(tiny.artifact(), "--max-batch", "1", "--drain", "60") as running:
        first = send_raw(running.port, "/v1/completions", {**LONG, "stream": True})
        assert b"200" in first.recv(400)
        second = send_raw(running.port, "/v1/completions", {**LONG, "prompt": "Twice", "stream": stream})
        running.wait_for("requests_waiting", 1)
        second.close()
        time.sleep(0.2)
        first.close()
        running.wait_idle(1)
        running.process.terminate()
        assert running.process.wait(10) == 0


def test_a_deadline_ends_a_request_with_408(idle):
    begun = time.monotonic()
    answer = idle.http.post("/v1/completions", json={**LONG, "timeout": 0.1})
    assert answer.status_code == 408
    assert time.monotonic() - begun < 2
    assert answer.json()["error"]["code"] == "timeout"
    idle.wait_idle(1)
    with idle.http.stream("POST", "/v1/completions", json={**LONG, "timeout": 0.2, "stream": True}) as streamed:
        events = b"".join(streamed.iter_bytes()).split(b"\n\n")
    assert any(b'"timeout"' in e and b'"error"' in e for e in events)


def test_the_first_in_priority_goes_first(serve):
    with serve(tiny.artifact(), "--max-batch", "1") as running, ThreadPoolExecutor(3) as pool:
        order = []
        first = send_raw(running.port, "/v1/completions", {**LONG, "stream": True})
        first.recv(400)

        def ask(name, priority):
            running.complete(f"The {name}", priority=priority, max_tokens=1500 if name == "low" else 10, ignore_eos=True)
            order.append(name)

        futures = [pool.submit(ask, "low", -1)]
        running.wait_for("requests_waiting", 1)
        futures.append(pool.submit(ask, "high", 10))
        running.wait_for("requests_waiting", 2)
        first.close()
        for f in futures:
            f.result(30)
        assert order == ["high", "low"]


def test_fuzz_200_bodies_never_give_a_500(idle, random):
    """Valid fields with random values, most of them wrong somewhere: any answer but a 5xx, and the server lives."""
    scalars = [
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        20,
        0.5,
        1.5,
        -0.5,
        1e9,
        1e-30,
        1 << 65,
        "",
        "x",
        "5",
        "\u2028\0",
        [],
        {},
        [1],
        ["a"],
        [[1, 2], [3]],
        [None],
        {"5": 1},
        {"5": 99.5, "7": -3},
        {"a": 1},
        {"include_usage": True},
        [{"role": "user", "content": "a"}],
        [{"role": "assistant", "content": None}],
    ]
    fields = [
        "prompt",
        "messages",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "n",
        "stream",
        "stream_options",
        "stop",
        "stop_token_ids",
        "max_tokens",
        "max_completion_tokens",
        "logit_bias",
        "seed",
        "logprobs",
        "top_logprobs",
        "ignore_eos",
        "return_token_ids",
        "priority",
        "timeout",
        "user",
        "echo",
        "best_of",
        "suffix",
        "response_format",
        "tools",
        "tool_choice",
        "chat_template_kwargs",
        "model",
        "nonsense",
    ]
    counts = {}
    for i in range(200):
        chat = bool(random.random() < 0.5)
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3} if chat else {"prompt": "a", "max_tokens": 3}
        for name in random.choice(fields, int(random.integers(0, 4)), replace=False):
            body[str(name)] = scalars[int(random.integers(len(scalars)))]
        if body.get("max_tokens") in (None, 1e9):
            body["max_tokens"] = 2
        body.pop("max_completion_tokens", None) if body.get("max_completion_tokens") == 1e9 else None
        answer = idle.http.post("/v1/chat/completions" if chat else "/v1/completions", json=body)
        assert answer.status_code < 500, f"{answer.status_code} for body {i}: {body}"
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
    assert counts.get(200, 0) >= 10 and counts.get(400, 0) >= 10, counts
