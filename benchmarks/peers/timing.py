"""What the peers' workers share. Each is run by compare.py in a virtual environment of its own, without llmc:

`WORKER.py prepare SOURCE.gguf KIND OUT` makes its model; `WORKER.py time MODEL JSON` prints the cells (tokens a second) as JSON;
`WORKER.py start MODEL THREADS` prints the seconds from the process's start to the first token, and its peak memory.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from typing import Any


def age() -> float:
    """Seconds since this process started."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started


def random_ids(count: int, vocabulary: int) -> list[int]:
    return [random.randrange(200, vocabulary - 200) for _ in range(count)]


def cells(run: Callable[[int, int, int], float], q: dict[str, Any]) -> dict[str, float]:
    """The cells, from a function (requests, tokens of a prompt, tokens to make) → seconds."""
    run(1, 64, 4)
    first = run(1, q["prompt"], 1)
    found = {"prefill": q["prompt"] / first, "decode": (q["generate"] - 1) / (run(1, q["prompt"], q["generate"]) - first)}
    for n in q["concurrency"]:
        found[f"at_once_{n}"] = n * q["concurrent_generate"] / run(n, q["concurrent_prompt"], q["concurrent_generate"])
    return found


def main(
    prepare: Callable[[str, str, str], None],
    time_cells: Callable[[str, dict[str, Any]], Any],
    first_token: Callable[[str, int], Any],
) -> None:
    """The worker's command line. `first_token(model, threads)` loads the model and makes one token."""
    command, *given = sys.argv[1:]
    if command == "prepare":
        prepare(*given)
    elif command == "time":
        print(json.dumps(time_cells(given[0], json.loads(given[1]))))
    else:
        first_token(given[0], int(given[1]))
        seconds = age()
        with open("/proc/self/status") as status:  # not ru_maxrss, which counts what the parent had when it forked
            peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        print(json.dumps({"seconds": seconds, "rss": peak}))


def main_of(
    prepare: Callable[[str, str, str], None], load: Callable[[str, int], Any], run: Callable[[Any, int, int, int], float]
) -> None:
    """The command line of an engine that `load(model, threads)` makes ready and of which `run(engine, requests, tokens of a prompt, tokens to
    make)` takes so many seconds."""

    def time_cells(path: str, q: dict[str, Any]) -> dict[str, float]:
        engine = load(path, q["threads"])
        return cells(lambda *sizes: run(engine, *sizes), q)

    main(prepare, time_cells, lambda path, threads: run(load(path, threads), 1, 5, 1))
