"""`llmc tune` for CPUs: which numbers of codegen/tuning.py are the fastest on this machine, by timing the compiled kernels themselves.

A small model of an ordinary shape is compiled once for each scheme; its kernels are then built for one candidate after the other
and timed beside the best so far, turn by turn, on steps of 1, 8 and 32 tokens of as many sequences and on a prefill. A candidate is
taken when it is faster by `WORTH`.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np

from .codegen.emit import Targets, emit
from .codegen.tuning import KNOBS, VERSION, Tuning, shipped_tuning
from .errors import EnvironmentLacks, UsageError, nearest
from .runtime.artifact import Artifact, open_artifact
from .runtime.cpu_info import LEVELS, available_levels, cpu_name, usable_cpus
from .runtime.executors.cpu import Batch, CpuExecutor
from .version import VERSION as LLMC

SCHEMES = ("bf16", "int4", "int8")
SHAPE = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 4,
    "vocab_size": 16384, "max_position_embeddings": 1024,
}  # fmt: skip
STEPS = {"1 request": (1, 1), "8 requests": (8, 1), "32 requests": (32, 1), "prefill": (1, 256)}
"""Sequences, and tokens of each."""
WORTH = 0.02
"""A candidate must be faster by this share in the mean of all cells."""
ROUNDS = 9


class Kernels:
    """An artifact some of whose members are replaced by others."""

    def __init__(self, artifact: Artifact, files: dict[str, bytes]) -> None:
        self._artifact, self._files = artifact, files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._artifact, name)

    def read(self, name: str) -> bytes:
        return self._files[name] if name in self._files else self._artifact.read(name)


class _Case:
    """A scheme's compiled model, and executors of it with other kernels."""

    def __init__(self, path: Path, level: str, threads: int) -> None:
        from .compiler.ir.text import parse_graph

        self.artifact = open_artifact(path)
        self.level, self._threads = level, threads
        self._graph = parse_graph(self.artifact.read("model.ir").decode())
        self._kv_dtype = self.artifact.manifest["model"]["kv_dtype"]

    def executor(self, tuning: Tuning) -> CpuExecutor:
        emitted = emit(self._graph, self._kv_dtype, Targets(levels=(self.level,)), tuning)
        files, _ = emitted.build(Targets(levels=(self.level,)), "", lambda items, what: items)
        kernels = cast(Artifact, Kernels(self.artifact, files))
        return CpuExecutor(
            kernels, threads=self._threads, max_tokens=512, max_sequences=32, max_rows=32, context=1024, blocks=64, isa=self.level
        )


def batch(sequences: int, tokens: int, vocabulary: int) -> Batch:
    """A step of as many tokens for each of so many sequences, from their beginning."""
    total, columns = sequences * tokens, -(-tokens // 32)
    return Batch(
        (np.arange(total, dtype=np.int32) * 7 + 3) % vocabulary,
        np.tile(np.arange(tokens, dtype=np.int32), sequences),
        np.arange(sequences + 1, dtype=np.int32) * tokens,
        np.zeros(sequences, np.int32),
        np.arange(sequences * columns, dtype=np.int32).reshape(1, sequences, columns),
        np.arange(sequences, dtype=np.int32) * tokens + tokens - 1,
        np.zeros(sequences, np.int32),
    )


def _seconds(executor: CpuExecutor, step: Batch) -> float:
    start = time.perf_counter()
    executor.run(step)
    return time.perf_counter() - start


def _compare(before: list[CpuExecutor], after: list[CpuExecutor]) -> dict[str, float]:
    """For each scheme and step, the seconds after over those before: medians of turns."""
    ratios = {}
    for scheme, a, b in zip(SCHEMES, before, after, strict=True):
        for name, (sequences, tokens) in STEPS.items():
            step = batch(sequences, tokens, int(SHAPE["vocab_size"]))
            for executor in (a, b):
                executor.run(step)
            turns = [_seconds(b, step) / _seconds(a, step) for _ in range(ROUNDS)]
            ratios[f"{scheme}, {name}"] = statistics.median(turns)
    return ratios


def _mean(ratios: dict[str, float]) -> float:
    return math.exp(statistics.fmean(math.log(r) for r in ratios.values()))


def tune(
    out: str | Path,
    *,
    isa: str = "",
    threads: int | None = None,
    each: Callable[[Iterable[Any], str], Iterable[Any]] = lambda items, what: items,
) -> dict[str, Any]:
    """Search, and write the table. Raises UsageError and EnvironmentLacks for a level that is not here.

    Returns what the file says: `levels`, the knobs that differ from their first values; `provenance`, with the processor, the
    number of threads and the time of each candidate relative to what was best before it.
    """
    here = available_levels()
    if isa and isa not in LEVELS:
        raise UsageError(f"unknown instruction-set level {isa!r}", nearest(isa, LEVELS))
    if not here or (isa and isa not in here):
        raise EnvironmentLacks(f"this CPU does not run {isa or 'any known level'}; it runs {', '.join(here) or 'none'}")
    level, count = isa or here[0], threads or usable_cpus()
    best = {name: shipped_tuning().value(level, name) for name in KNOBS}
    tried: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="llmc-tune-") as folder:
        cases = [_Case(path, level, count) for path in _compiled(Path(folder), level)]
        held = [case.executor(Tuning({level: best})) for case in cases]
        candidates = [(name, value) for name, knob in KNOBS.items() for value in knob.values]
        for name, value in each(candidates, "candidates"):
            if value == best[name]:
                continue
            trial = {**best, name: value}
            made = [case.executor(Tuning({level: trial})) for case in cases]
            ratios = _compare(held, made)
            taken = _mean(ratios) < 1 - WORTH
            tried.append({
                "knob": name, "value": value, "against": best[name], "time": round(_mean(ratios), 4), "taken": taken,
                "cells": {cell: round(r, 4) for cell, r in ratios.items()},
            })  # fmt: skip
            if taken:
                held, made, best = made, held, trial
            for executor in made:
                executor.close()
        for executor in held:
            executor.close()
    found = {k: v for k, v in best.items() if v != KNOBS[k].values[0]}
    return write_table(out, level, found, cpu=cpu_name(), threads=count, tried=tried)


def write_table(out: str | Path, level: str, found: dict[str, Any], **provenance: Any) -> dict[str, Any]:
    """A table of what was found for a level or chip, which is also returned. Raises EnvironmentLacks where it cannot be written."""
    known = {"level": level, "llmc": LLMC, "date": datetime.date.today().isoformat()}
    table = {"tuning": VERSION, "provenance": [known | provenance], "levels": {level: found}}
    partial = Path(f"{out}.partial")
    try:
        partial.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise EnvironmentLacks(f"{out} cannot be written: {error.strerror}") from error
    return table


def _compiled(folder: Path, level: str) -> Iterable[Path]:
    """The model with each scheme."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from .pipeline import compile as compile_model

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE, dtype="bfloat16"))
    for scheme in SCHEMES:
        path = folder / f"{scheme}.llmc"
        compile_model(model, path, quant=scheme, target=(f"cpu:{level}",))
        yield path
