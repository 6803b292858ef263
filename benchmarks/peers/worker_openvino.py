"""openvino-genai, which reads GGUF files; requests at once through its continuous batching. See timing.py."""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from timing import main_of, random_ids

VOCABULARY = 40000


def prepare(source: str, kind: str, out: str) -> None:
    shutil.copyfile(source, out)


def settings(generate: int) -> Any:
    made = genai.GenerationConfig()
    made.max_new_tokens, made.min_new_tokens, made.ignore_eos, made.do_sample = generate, generate, True, False
    return made


def tensor(ids: list[int]) -> Any:
    return openvino.Tensor(np.array([ids], np.int64))


def load(path: str, threads: int) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs, scheduler.num_kv_blocks, scheduler.cache_size = 64, 0, 2
    scheduler.max_num_batched_tokens, scheduler.enable_prefix_caching = 512, False
    return genai.ContinuousBatchingPipeline(path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})


def run(made: Any, count: int, prompt: int, generate: int) -> float:
    prompts = [tensor(random_ids(prompt, VOCABULARY)) for _ in range(count)]
    start = time.perf_counter()
    made.generate(prompts, [settings(generate)] * count)
    return time.perf_counter() - start


if __name__ == "__main__":
    main_of(prepare, load, run)
