"""A load on a completions server that costs little itself: `python -m benchmarks.light_load ADDRESS MODEL AT_ONCE REQUESTS` prints JSON.

Each request has 128 random tokens in and 128 out, streamed, on a connection of its own; bytes are counted as they come, nothing is
parsed. For what a server loses to HTTP on processors that it shares with its load; a public load generator is the judge of servers.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import resource
import sys
import time
from urllib.parse import urlsplit

PROMPT = GENERATE = 128
MARK = b"data: "


async def ask(host: str, port: int, body: bytes) -> tuple[float, list[float]]:
    """One request: when it began, and when each of its chunks came."""
    began, came, seen, ended = time.perf_counter(), [], b"", False
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    while data := await reader.read(1 << 16):
        seen = seen[-len(MARK) + 1 :] + data  # what is kept is shorter than a mark, so none is counted twice
        came += [time.perf_counter()] * seen.count(MARK)
        ended = ended or b"[DONE]" in seen
    writer.close()
    if not ended:
        raise RuntimeError(f"a stream did not end: {seen[-200:].decode(errors='replace')}")
    return began, came[: GENERATE + 1]


async def load(address: str, model: str, at_once: int, requests: int) -> dict[str, float]:
    where, rng, gate = urlsplit(address), random.Random(0), asyncio.Semaphore(at_once)
    bodies = [
        json.dumps({
            "model": model, "prompt": [rng.randrange(1000, 20000) for _ in range(PROMPT)], "max_tokens": GENERATE, "temperature": 0,
            "stream": True, "ignore_eos": True,
        }).encode()
        for _ in range(requests)
    ]  # fmt: skip

    async def one(body: bytes) -> tuple[float, list[float]]:
        async with gate:
            return await ask(str(where.hostname), int(where.port or 80), body)

    start = time.perf_counter()
    answers = await asyncio.gather(*map(one, bodies))
    seconds = time.perf_counter() - start
    first = sorted(came[0] - began for began, came in answers)
    between = sorted(b - a for _, came in answers for a, b in itertools.pairwise(came))

    def at(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]

    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "output_tok_s": requests * GENERATE / seconds,
        "ttft_p50_s": at(first, 0.5), "ttft_p99_s": at(first, 0.99), "itl_p50_s": at(between, 0.5), "itl_p99_s": at(between, 0.99),
        "load_cpu_s": used.ru_utime + used.ru_stime,
    }  # fmt: skip


if __name__ == "__main__":
    address, model, at_once, requests = sys.argv[1:]
    print(json.dumps(asyncio.run(load(address, model, int(at_once), int(requests)))))
