"""vLLM's CPU back end, on a checkpoint that llmc exported (compressed-tensors) or a plain one. See timing.py."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from timing import main_of, random_ids
from vllm import LLM, SamplingParams

VOCABULARY = 40000


def prepare(source: str, kind: str, out: str) -> None:
    shutil.copytree(source, out)


def load(path: str, threads: int) -> Any:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return LLM(path, dtype="bfloat16", skip_tokenizer_init=True, max_model_len=8192, max_num_seqs=64, enable_prefix_caching=False)


def run(model: Any, count: int, prompt: int, generate: int) -> float:
    prompts = [{"prompt_token_ids": random_ids(prompt, VOCABULARY)} for _ in range(count)]
    params = SamplingParams(temperature=0.0, max_tokens=generate, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    model.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main_of(prepare, load, run)
