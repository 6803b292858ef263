"""One artifact run in many ways, all of which must give the same bits."""

from __future__ import annotations

import llmc
import numpy as np

TOKENS = 70  # past two cache blocks and far past the sliding window of 8


def draw(random, count=TOKENS, vocabulary=256):
    return random.integers(3, vocabulary, count).tolist()


def load(path, **options):
    return llmc.load(path, **{"kv_cache": "16MiB", "threads": 2, "max_batch": 8, **options})


def same_bits_however_computed(path, sequences, **options):
    """The property that the engine rests on: chunks, batches, preemption, prefix hits and threads change no bit."""
    with load(path, threads=1, **options) as model:
        alone = [model.logits([ids])[0] for ids in sequences]
        ways = {
            "together": model.logits(sequences),
            "one token a step": model.logits(sequences, chunk=1),
            "seven a step": model.logits(sequences, chunk=7),
        }
        ways |= {f"schedule {seed}": model.logits(sequences, schedule_seed=seed) for seed in range(4)}
    with load(path, threads=2, **options) as model:
        ways |= {"two threads": model.logits(sequences), "two threads, schedule 9": model.logits(sequences, schedule_seed=9)}
    for name, results in ways.items():
        for i, (got, expected) in enumerate(zip(results, alone, strict=True)):
            assert got.tobytes() == expected.tobytes(), f"{name}: sequence {i} differs by {np.abs(got - expected).max()}"
