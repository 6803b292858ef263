"""transformers with PyTorch, eager, bfloat16: requests at once are one batch of equal lengths. See timing.py."""

from __future__ import annotations

import time
from typing import Any

import torch
from timing import main_of, random_ids
from transformers import AutoModelForCausalLM


def prepare(source: str, kind: str, out: str) -> None:
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(out)


def load(path: str, threads: int) -> Any:
    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()


@torch.inference_mode()
def run(model: Any, count: int, prompt: int, generate: int) -> float:
    ids = torch.tensor([random_ids(prompt, model.config.vocab_size) for _ in range(count)])
    start = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    for _ in range(generate - 1):
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    return time.perf_counter() - start


if __name__ == "__main__":
    main_of(prepare, load, run)
