"""Decode of a Llama of a given shape through transformers with a static cache and torch.compile, on a GPU: a baseline for `benchmarks.gpu`.

`python transformers_decode.py CONFIG.json BATCH CONTEXT` prints one JSON line: seconds a step and tokens a second, eager and compiled
(mode reduce-overhead: CUDA graphs). Weights and cache are random, as in the runs that it stands beside.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def decode(config_path: str, batch: int, context: int, device: str = "cuda", compiled: bool = True) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

    settings = json.loads(Path(config_path).read_text())
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config).eval()
    cache = StaticCache(config=config, max_cache_len=context + 64)
    found: dict[str, Any] = {"batch": batch, "context": context}
    with torch.no_grad():
        model(torch.full((batch, 4), 17, device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        for layer in cache.layers:
            layer.keys.normal_(0, 0.5)
            layer.values.normal_(0, 0.5)

        def step(run: Any) -> None:
            for layer in cache.layers:
                if hasattr(layer, "cumulative_length"):
                    layer.cumulative_length.fill_(context)
            ids = torch.full((batch, 1), 17, device=device)
            at = torch.tensor([context], device=device)
            out = run(ids, past_key_values=cache, use_cache=True, cache_position=at, position_ids=at.expand(batch, 1)).logits
            out[:, -1].argmax(-1).tolist()

        for name, run, warm, count in (
            ("eager", model, 2, 4),
            *((("compiled", torch.compile(model, mode="reduce-overhead", fullgraph=False), 4, 12),) if compiled else ()),
        ):
            start = time.perf_counter()
            for _ in range(warm):
                step(run)
            warmed, times = time.perf_counter() - start, []
            for _ in range(count):
                start = time.perf_counter()
                step(run)
                times.append(time.perf_counter() - start)
            found[name] = {"step_s": statistics.median(times), "tok_s": batch / statistics.median(times), "warm_s": warmed}
            print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    decode(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
