"""openvino-genai, which reads GGUF files; requests at once through its continuous batching. See timing.py."""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from timing import cells, main, random_ids

VOCABULARY = 40000


def prepare(source: str, kind: str, out: str) -> None:
    shutil.copyfile(source, out)


def settings(generate: int) -> Any:
    made = genai.GenerationConfig()
    made.max_new_tokens, made.min_new_tokens, made.ignore_eos, made.do_sample = generate, generate, True, False
    return made


def tensor(ids: list[int]) -> Any:
    return openvino.Tensor(np.array([ids], np.int64))


def pipeline(path: str, threads: int, requests: int, tokens: int) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs, scheduler.num_kv_blocks = requests, 0
    scheduler.cache_size = 2
    scheduler.max_num_batched_tokens = max(512, tokens)
    scheduler.enable_prefix_caching = False
    return genai.ContinuousBatchingPipeline(path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})


def run(made: Any, count: int, prompt: int, generate: int) -> float:
    prompts = [tensor(random_ids(prompt, VOCABULARY)) for _ in range(count)]
    start = time.perf_counter()
    made.generate(prompts, [settings(generate)] * count)
    return time.perf_counter() - start


def time_cells(path: str, q: dict[str, Any]) -> dict[str, float]:
    made = pipeline(path, q["threads"], max(q["concurrency"]), q["prompt"])
    return cells(lambda *sizes: run(made, *sizes), q)


if __name__ == "__main__":
    main(prepare, time_cells, lambda path, threads: run(pipeline(path, threads, 1, 512), 1, 5, 1))
