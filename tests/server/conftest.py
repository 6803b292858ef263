"""A real `llmc run` process for the tests of the server, and ways to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from server import tiny

COMMAND = [sys.executable, "-c", "from llmc.cli.main import main; main()", "run"]


class Running:
    """A server process, its address, an httpx client and the official openai client."""

    def __init__(self, process: Any, url: str, name: str, key: str) -> None:
        self.process, self.url, self.name = process, url, name
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=url, timeout=60, headers=headers)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=key or "unused", max_retries=0, timeout=60)
        self.port = int(url.rpartition(":")[2])

    def complete(self, prompt: Any = "The keeper", **fields: Any) -> dict[str, Any]:
        """A /v1/completions answer, greedy and with token ids unless told otherwise."""
        return self.post(
            "/v1/completions", {"prompt": prompt, "max_tokens": 12, "temperature": 0, "return_token_ids": True, **fields}
        )

    def chat(self, content: str = "Who counts ships?", **fields: Any) -> dict[str, Any]:
        return self.post(
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": content}],
                "max_tokens": 12,
                "temperature": 0,
                "return_token_ids": True,
                **fields,
            },
        )

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chunks(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream, which must end with [DONE]."""
        with self.http.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = b"".join(answer.iter_bytes()).split(b"\n\n")
        assert events.pop() == b""
        assert events.pop() == b"data: [DONE]"
        return [json.loads(e.removeprefix(b"data: ")) for e in events]

    def metric(self, name: str) -> float:
        found = re.search(rf"^llmc_{name} (\S+)$", self.http.get("/metrics").text, re.M)
        assert found, name
        return float(found[1])

    def busy(self) -> tuple[float, float, float]:
        return self.metric("requests_waiting"), self.metric("requests_running"), self.metric("cache_usage_ratio")

    def wait_idle(self, seconds: float) -> None:
        """Fail unless no request and no cache block is left within that time."""
        end = time.monotonic() + seconds
        while (left := self.busy()) != (0.0, 0.0, 0.0):
            assert time.monotonic() < end, f"waiting, running, cache used: {left} after {seconds} s"
            time.sleep(0.02)

    def wait_for(self, name: str, value: float, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while (now := self.metric(name)) < value:
            assert time.monotonic() < end, f"{name} is {now}"
            time.sleep(0.01)


def ready_line(process: Any, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([process.stdout], [], [], 0.2)[0]:
            return process.stdout.readline().decode()
        assert process.poll() is None, f"the server ended with {process.returncode}"
    raise AssertionError("the server did not become ready")


@contextlib.contextmanager
def serving(artifact: Path, *args: str, key: str = "", environment: dict[str, str] | None = None) -> Iterator[Running]:
    """`llmc run` on a free port of 127.0.0.1, ended at the end of the block."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*COMMAND, str(artifact), "--port", "0", *args],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
        try:
            line = ready_line(process)
            assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+\n", line), line
            running = Running(process, line.split()[1], artifact.stem, key)
            yield running
            running.http.close()
            running.openai.close()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(30)
            process.stdout.close()
        errors.seek(0)
        text = errors.read().decode()
        assert "Traceback" not in text, text
        assert "exception was never retrieved" not in text, text


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    return serving


@pytest.fixture(scope="session")
def shared() -> Iterator[Callable[[], Running]]:
    """The server that most tests share. One that died is replaced: the test that killed it is the one that fails."""
    stack, current = contextlib.ExitStack(), list[Running]()

    def get() -> Running:
        if not current or current[-1].process.poll() is not None:
            current.append(stack.enter_context(serving(tiny.artifact(), "--max-batch", "32")))
        return current[-1]

    with stack:
        yield get


@pytest.fixture
def server(shared: Callable[[], Running]) -> Running:
    return shared()


@pytest.fixture
def idle(server: Running) -> Iterator[Running]:
    """The shared server, which must be alive and give all cache blocks back at the end of the test."""
    yield server
    assert server.process.poll() is None, "the server died"
    assert server.http.get("/health").status_code == 200
    server.wait_idle(2)


@pytest.fixture(scope="session")
def model() -> Iterator[Any]:
    """The same artifact, loaded in this process: what the server's answers must equal."""
    import llmc

    with llmc.load(tiny.artifact(), threads=1) as loaded:
        yield loaded
