"""onnxruntime-genai, with a model by its own builder: requests at once are one batch of equal lengths. See timing.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import onnxruntime_genai as genai
from timing import main_of, random_ids

VOCABULARY = 40000


def prepare(source: str, kind: str, out: str) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            source,
            "-o",
            out,
            "-p",
            kind,
            "-e",
            "cpu",
            "-c",
            f"{out}.cache",
        ],
        check=True,
    )


def load(path: str, threads: int) -> Any:
    config = genai.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return genai.Model(config)


def run(model: Any, count: int, prompt: int, generate: int) -> float:
    params = genai.GeneratorParams(model)
    length = prompt + generate
    params.set_search_options(max_length=length, min_length=length, batch_size=count, do_sample=False)
    ids = np.array([random_ids(prompt, VOCABULARY) for _ in range(count)], np.int32)
    start = time.perf_counter()
    made = genai.Generator(model, params)
    made.append_tokens(ids)
    for _ in range(generate):
        made.generate_next_token()
    return time.perf_counter() - start


if __name__ == "__main__":
    main_of(prepare, load, run)
