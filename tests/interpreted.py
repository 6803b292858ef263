"""A file's plan run by the interpreter, in a process of its own, beside the CPU's kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from llmc.runtime.api import load
from llmc.runtime.executors.choose import target_entry

from benchmarks.gpu import strange_draws

WORKER = Path(__file__).parent / "codegen" / "interpreter_worker.py"
FLIPS = {"gpt_oss": 4, "qwen3_next": 1, "mixtral": 1}
"""Tokens of 35 whose router has a near tie: it may send them to another expert; and, with more choices, others that look at those."""


def interpreted(path, random, tmp_path, tolerance, flips=0):
    """A file's plan by the interpreter: the CPU's logits, the same bits in pieces. Returns the results and the manifest's entry of the target."""
    out, seed = tmp_path / "out.npz", int(random.integers(1 << 30))
    done = subprocess.run([sys.executable, WORKER, path, "cuda:sm_90", out, str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    got = np.load(out)
    with load(path, target="cpu") as model:
        wanted = model.logits(got["ids"].tolist())
        facts = target_entry(model.artifact, "cuda:sm_90")
    errors = np.sort(np.abs(got["prefill"] - wanted).max(1) / np.abs(wanted).max())
    assert errors[-1 - flips] < tolerance, errors[-3:]
    assert got["pieces"].tobytes() == got["prefill"].tobytes(), np.abs(got["pieces"] - got["prefill"]).max()
    assert got["greedy"][0] == got["prefill"][-1].argmax()
    assert not strange_draws(got["prefill"], got["drawn"], got["tokens"])
    return got, facts
