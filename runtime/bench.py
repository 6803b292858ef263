"""Benchmarks of one artifact: rates, latencies, start-up, memory, and the floors that the machine's ceilings give."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsupportedError, UsageError
from .api import Model, load
from .artifact import open_artifact
from .config import RunConfig
from .engine import Event, FinishEvent, Request, TokenEvent
from .executors.cpu import CpuExecutor
from .plan import cache_bytes_read

Figure = dict[str, float]


@dataclass(frozen=True, slots=True)
class BenchSettings:
    prompt_len: int = 512
    gen_len: int = 128
    concurrency: tuple[int, ...] = (1, 8, 32)
    concurrent_prompt_len: int = 128
    concurrent_gen_len: int = 128
    reps: int = 5
    profile: bool = False


def figure(values: list[float]) -> Figure:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def run_bench(
    path: str,
    settings: BenchSettings,
    *,
    threads: int | None = None,
    target: str = "",
    isa: str = "",
    portable: bool = False,
    quiet: bool = True,
) -> dict[str, Any]:
    """All cells of `llmc bench`, as its JSON."""
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    most = max((1, *settings.concurrency))
    with open_artifact(path) as artifact:  # what cannot run is refused here, not in each of the processes below
        context = RunConfig.resolve(artifact, threads=threads, target=target, isa=isa, max_batch=most).context
        for option, prompt, answer in (
            ("--prompt-len", settings.prompt_len, 2),
            ("--concurrent-prompt-len", settings.concurrent_prompt_len, 1),
        ):
            if prompt + answer > context:
                raise UsageError(
                    f"{option} {prompt} is too long: this model serves {context} positions, the answer included",
                    f"give at most {context - answer}",
                )
    say("start-up …")  # first, in a small process: a child's peak memory counts what its parent had when it was forked
    starts = [_cold_start(path, threads, isa) for _ in range(settings.reps + 1)][1:]
    with load(path, threads=threads, target=target, isa=isa, portable=portable, max_batch=most) as model:
        rng = np.random.default_rng(0)
        if not isinstance(model.executor, CpuExecutor):
            raise UnsupportedError(
                f"bench measures CPUs, and this would run on {model.config.target}", "give --target cpu, or use make gpu-bench"
            )
        say("ceilings …")
        ceilings = model.executor.peaks(model.config.threads)
        say("prefill and decode …")
        prefill, decode = _single(model, settings, rng)
        concurrent = []
        for n in settings.concurrency:
            say(f"{n} at once …")
            concurrent.append(_concurrent(model, n, settings, rng))
        result: dict[str, Any] = {
            "artifact": os.path.basename(path), "target": model.config.target, "isa": model.executor.level, "threads": model.config.threads,
            "prefill_tok_s": figure(prefill), "decode_tok_s": figure(decode), "concurrent": concurrent,
        }  # fmt: skip
        result["floor"] = _floors(model, settings, ceilings)
        for row in concurrent:
            row["floor_tok_s"] = _concurrent_floor(model, row["n"], settings, ceilings)
        result["ceilings"] = ceilings
        if settings.profile:
            result["profile"] = _profile(model, model.executor, settings, rng, ceilings)
    result["start_to_first_token_s"] = figure([s for s, _ in starts])
    result["peak_rss_bytes"] = figure([float(r) for _, r in starts])
    return result


def _ids(model: Model, rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return rng.integers(0, model.executor.vocabulary, count).astype(np.int32)


def _time(model: Model, prompts: list[Any], tokens: int) -> list[list[float]]:
    """Submit all at once to a fresh engine; for each request the times of its tokens, from the first submission on."""
    engine = model.new_engine()
    params = model.params(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    stamps: list[list[float]] = [[] for _ in prompts]
    start = time.perf_counter()

    def listener(i: int) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            if isinstance(event, TokenEvent):
                stamps[i].append(time.perf_counter() - start)
            elif isinstance(event, FinishEvent) and event.reason not in ("stop", "length"):
                raise RuntimeError(event.message)

        return hear

    for i, prompt in enumerate(prompts):
        engine.submit(Request(prompt, params, listener(i)))
    while not engine.idle:
        engine.step()
    return stamps


def _single(model: Model, settings: BenchSettings, rng: np.random.Generator) -> tuple[list[float], list[float]]:
    prefill, decode = [], []
    for i in range(settings.reps + 1):
        (stamps,) = _time(model, [_ids(model, rng, settings.prompt_len)], settings.gen_len)
        if i:
            prefill.append(settings.prompt_len / stamps[0])
            decode.append((len(stamps) - 1) / (stamps[-1] - stamps[0]))
    return prefill, decode


def _concurrent(model: Model, n: int, settings: BenchSettings, rng: np.random.Generator) -> dict[str, Any]:
    rates, first, p50, p99 = [], [], [], []
    for i in range(settings.reps + 1):
        stamps = _time(model, [_ids(model, rng, settings.concurrent_prompt_len) for _ in range(n)], settings.concurrent_gen_len)
        if i:
            gaps = np.concatenate([np.diff(s) for s in stamps]) if settings.concurrent_gen_len > 1 else np.zeros(1)
            rates.append(sum(len(s) for s in stamps) / max(s[-1] for s in stamps))
            first.append(statistics.median(s[0] for s in stamps))
            p50.append(float(np.quantile(gaps, 0.5)))
            p99.append(float(np.quantile(gaps, 0.99)))
    return {
        "n": n,
        "output_tok_s": figure(rates),
        "ttft_p50_s": figure(first),
        "itl_p50_s": figure(p50),
        "itl_p99_s": figure(p99),
    }


def _kernels(model: Model) -> list[dict[str, Any]]:
    return next(t["kernels"] for t in model.artifact.manifest["targets"] if t["isa"] == model.executor.level)


def _rate(kernel: dict[str, Any], ceilings: dict[str, float]) -> float:
    """Operations a second that this kernel's arithmetic allows."""
    return 1e9 * (ceilings["int8_gop_s"] if kernel["kernel"].endswith(("_d4", "_d8")) else ceilings["bf16_gflop_s"])


@dataclass(frozen=True, slots=True)
class _Load:
    """What a step does: positions that it computes, rows of logits, bytes of cache that it reads, and pairs of a query and a position."""

    tokens: float
    rows: float
    cached: float
    pairs: float


def _load_of(model: Model, tokens: float, rows: float, contexts: float) -> _Load:
    """Of a step with so many rows, each of a sequence of so many positions: `tokens` equal to `rows` decode, more read a prompt."""
    one = cache_bytes_read(model.artifact.manifest, int(contexts))
    return _Load(tokens, rows, rows * one, tokens * (contexts if tokens == rows else contexts / 2))


def _kernel_floors(model: Model, load: _Load, ceilings: dict[str, float]) -> list[tuple[float, float, float]]:
    """(bytes, operations, seconds) that a step needs at least, for each kernel."""
    kernels = _kernels(model)
    attentions = sum(k["calls"] for k in kernels if "operations_a_position" in k)
    floors = []
    for kernel in kernels:
        read = kernel["weight_bytes"]
        if "experts" in kernel:  # those that so many tokens are expected to meet
            chosen, count = kernel["experts"]
            read *= 1 - (1 - chosen / count) ** load.tokens
        operations = kernel["operations"] * (load.rows if "lm_head" in kernel["name"] else load.tokens)
        if "operations_a_position" in kernel:
            read += load.cached / attentions
            operations += kernel["operations_a_position"] * load.pairs
        seconds = max(read / (ceilings["read_gb_s"] * 1e9), operations / _rate(kernel, ceilings))
        floors.append((kernel["calls"] * read, kernel["calls"] * operations, kernel["calls"] * seconds))
    return floors


def _floor(model: Model, load: _Load, ceilings: dict[str, float]) -> float:
    """Seconds that a step needs at least."""
    return max(1e-12, sum(seconds for _, _, seconds in _kernel_floors(model, load, ceilings)))


def _floors(model: Model, settings: BenchSettings, ceilings: dict[str, float]) -> Figure:
    """Rates if only the floor's time were spent."""
    decode = _floor(model, _load_of(model, 1, 1, settings.prompt_len + settings.gen_len / 2), ceilings)
    prefill = _floor(model, _load_of(model, settings.prompt_len, 1, settings.prompt_len), ceilings)
    return {"decode_tok_s": 1 / decode, "prefill_tok_s": settings.prompt_len / prefill}


def _concurrent_floor(model: Model, n: int, settings: BenchSettings, ceilings: dict[str, float]) -> float:
    """Output tokens a second if n requests at once took only the floor's time."""
    prompt, generate = settings.concurrent_prompt_len, settings.concurrent_gen_len
    prefill = _floor(model, _load_of(model, n * prompt, n, prompt), ceilings)
    return n * generate / (prefill + (generate - 1) * _floor(model, _load_of(model, n, n, prompt + generate / 2), ceilings))


@dataclass(frozen=True, slots=True)
class _Work:
    """What is profiled: so many requests of so many tokens, and either the steps that read them or those that generate."""

    name: str
    requests: int
    prompt: int
    prefill: bool = False


def _profile(
    model: Model, executor: CpuExecutor, settings: BenchSettings, rng: np.random.Generator, ceilings: dict[str, float]
) -> list[dict[str, Any]]:
    """Kernels of prefill, of decode, and of each number of requests at once: seconds a step, share, and the fraction of the floor that
    bytes or operations give."""
    works = [_Work("prefill", 1, settings.prompt_len, True), _Work("decode", 1, settings.prompt_len)]
    works += [_Work(f"{n} at once", n, settings.concurrent_prompt_len) for n in settings.concurrency if n > 1]
    return [row for work in works for row in _profile_work(model, executor, work, settings, rng, ceilings)]


def _profile_work(
    model: Model,
    executor: CpuExecutor,
    work: _Work,
    settings: BenchSettings,
    rng: np.random.Generator,
    ceilings: dict[str, float],
) -> list[dict[str, Any]]:
    engine, begun = model.new_engine(), set[int]()
    generate = 2 if work.prefill else settings.gen_len if work.requests == 1 else settings.concurrent_gen_len
    params = model.params(max_tokens=max(generate, 2), temperature=0.0, ignore_eos=True)
    for i in range(work.requests):
        engine.submit(Request(_ids(model, rng, work.prompt), params, lambda event, i=i: begun.add(i)))  # type: ignore[misc]
    executor.profile(work.prefill)
    start, steps = time.perf_counter(), 0
    while len(begun) < work.requests:
        engine.step()
        steps += 1
    if not work.prefill:
        executor.profile(True)
        start, steps = time.perf_counter(), 0
        while not engine.idle:
            engine.step()
            steps += 1
    wall = time.perf_counter() - start
    executor.profile(False)
    while not engine.idle:
        engine.step()
    n = work.requests
    if work.prefill:
        load = _load_of(model, n * work.prompt, n, work.prompt)
        load = _Load(load.tokens / steps, load.rows / steps, load.cached / steps, load.pairs / steps)
    else:
        load = _load_of(model, n, n, work.prompt + generate / 2)
    rows, inside = [], 0.0
    floors = _kernel_floors(model, load, ceilings)
    for kernel, floor, (name, seconds, _) in zip(_kernels(model), floors, executor.profiled(), strict=True):
        inside += seconds
        rows.append(
            {
                "work": work.name,
                "kernel": f"{name} {kernel['scheme']}".strip(),
                "seconds": seconds / steps,
                "share": seconds / wall,
                "bytes": round(floor[0]),
                "operations": round(floor[1]),
                "fraction_of_floor": floor[2] / (seconds / steps) if seconds else 0.0,
            }
        )
    rows.append(
        {
            "work": work.name,
            "kernel": "outside the step: scheduling, sampling, Python",
            "seconds": (wall - inside) / steps,
            "share": 1 - inside / wall,
            "bytes": 0,
            "operations": 0,
            "fraction_of_floor": 0.0,
        }
    )
    return sorted(rows, key=lambda r: -float(r["seconds"]))


def _cold_start(path: str, threads: int | None, isa: str) -> tuple[float, int]:
    """A new process: seconds from its start to its first token, and its peak resident memory."""
    command = [
        sys.executable,
        "-c",
        "import sys; from llmc.cli.main import main; main(sys.argv[1:])",
        "generate",
        path,
        "--input-ids",
        "11,23,35,47,59",
        "--max-tokens",
        "1",
        "--ignore-eos",
        "--json",
    ]
    if threads is not None:
        command += ["--threads", str(threads)]
    if isa:
        command += ["--isa", isa]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return float(json.loads(out)["seconds"]["first_token"]), usage.ru_maxrss * 1024
