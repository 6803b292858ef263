"""Starting and ending: names, SIGTERM, a second SIGTERM, ports and a damaged file."""

from __future__ import annotations

import signal
import socket
import subprocess
import time

import httpx
import pytest
from server import tiny
from server.test_load import LONG, send_raw

TOKENS = 300


def rest(client):
    out = b""
    while chunk := client.recv(1 << 16):
        out += chunk
    return out


def test_sigterm_lets_a_stream_finish_and_refuses_what_is_new(serve):
    with serve(tiny.artifact()) as running:
        client = send_raw(
            running.port, "/v1/completions", {**LONG, "max_tokens": TOKENS, "stream": True, "return_token_ids": True}
        )
        begin = client.recv(400)
        running.process.send_signal(signal.SIGTERM)
        try:
            while httpx.get(f"{running.url}/health", timeout=10).status_code == 200:
                time.sleep(0.01)
            assert httpx.get(f"{running.url}/health", timeout=10).status_code == 503
            assert httpx.post(f"{running.url}/v1/completions", json={"prompt": "x"}, timeout=10).status_code == 503
        except httpx.TransportError:
            pass
        whole = begin + rest(client)
        assert b"data: [DONE]" in whole
        assert whole.count(b'"token_ids":[') == TOKENS + 1
        assert running.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_soon_with_0(serve, number):
    with serve(tiny.artifact()) as running:
        assert running.complete(max_tokens=1)
        running.process.send_signal(number)
        assert running.process.wait(5) == 0


def test_a_second_sigterm_ends_at_once(serve):
    with serve(tiny.artifact(), "--drain", "60", "--max-batch", "1") as running:
        clients = [send_raw(running.port, "/v1/completions", {**LONG, "stream": True, "n": 4}) for _ in range(4)]
        clients[0].recv(400)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        running.process.wait(10)
        assert time.monotonic() - begun < 2


def test_the_drain_has_an_end(serve):
    with serve(tiny.artifact(), "--drain", "0.3", "--max-batch", "1") as running:
        clients = [send_raw(running.port, "/v1/completions", {**LONG, "stream": True, "n": 4}) for _ in range(4)]
        clients[0].recv(400)
        running.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert running.process.wait(10) == 0
        assert time.monotonic() - begun < 4


def test_the_served_name(serve):
    with serve(tiny.artifact(), "--served-model-name", "org/other:1") as running:
        assert [m.id for m in running.openai.models.list()] == ["org/other:1"]
        assert running.openai.models.retrieve("org/other:1").id == "org/other:1"
        assert running.http.post("/v1/completions", json={"model": "tiny", "prompt": "x"}).status_code == 404
        assert (
            running.http.post("/v1/completions", json={"model": "org/other:1", "prompt": "x", "max_tokens": 1}).status_code == 200
        )


def test_verify_before_serving(serve, tmp_path):
    from server.conftest import COMMAND

    with serve(tiny.artifact(), "--verify") as running:
        assert running.http.get("/health").status_code == 200
    data = bytearray(tiny.artifact().read_bytes())
    at = data.rindex(b"weights/model.safetensors", 0, len(data) - 4096) + 300_000
    data[at] ^= 1
    broken = tmp_path / "broken.llmc"
    broken.write_bytes(data)
    done = subprocess.run([*COMMAND, str(broken), "--port", "0", "--verify"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert "hash" in done.stderr
    assert not done.stdout


def test_a_port_in_use_is_exit_5():
    from server.conftest import COMMAND

    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [*COMMAND, str(tiny.artifact()), "--port", str(taken.getsockname()[1])], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 5
    assert "cannot listen" in done.stderr and "Traceback" not in done.stderr
