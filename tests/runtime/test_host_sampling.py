"""Sampling on the host draws what the CPU's kernels draw."""

from __future__ import annotations

import numpy as np
import pytest
from llmc.runtime import host_sampling
from llmc.runtime.api import load
from llmc.runtime.sampling import SamplingRow

SETTINGS = [
    {},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.9, "temperature": 0.6},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_both_draw_the_same_tokens(settings, tiny, random):
    base = {
        "temperature": 0.9,
        "top_p": 1.0,
        "min_p": 0.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    with load(tiny) as model:
        model.logits(random.integers(3, 256, 24).tolist())
        prompt, output = (random.integers(0, 256, n).astype(np.int32) for n in (9, 6))
        same = 0
        for counter in range(200):
            fields = {**base, **settings}
            row = SamplingRow(0, seed=int(random.integers(1 << 62)), counter=counter, prompt=prompt, output=output, **fields)
            (mine,) = model.executor.sample([row], top=3, logprobs=True)
            logits = model.executor.logits(1)[0]
            theirs = host_sampling.judged(host_sampling.choose(row, logits), logits, 3, True)
            same += mine.token == theirs.token
            if mine.token == theirs.token:
                assert theirs.logprob == pytest.approx(mine.logprob, abs=1e-4)
            assert [t for t, _ in mine.top] == [t for t, _ in theirs.top]
        assert same >= 199  # a draw may fall on the other side of a border by rounding
