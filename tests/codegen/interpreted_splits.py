"""Attention in several splits by Triton's interpreter, in a process of its own: `python interpreted_splits.py ARTIFACT TARGET`.

Says as JSON whether tokens one at a time, alone and beside a sequence of one split, have the bits of a prefill.
"""

from __future__ import annotations

import json
import sys

from llmc.codegen.triton.interpreter import InterpreterDriver, interpret

interpret()

import numpy as np
from llmc.runtime.artifact import open_artifact
from llmc.runtime.executors.cpu import Batch
from llmc.runtime.executors.launch import LaunchExecutor
from llmc.runtime.plan import BLOCK, SPLIT, reaches

BLOCKS = SPLIT // BLOCK + 1
OTHER = BLOCKS + 1
"""A block of the second sequence."""


def main(path: str, target: str) -> None:
    with open_artifact(path) as artifact:
        prefix = "kernels/triton/source/"
        sources = {m.rpartition("/")[2]: artifact.read(m).decode() for m in artifact.members if m.startswith(prefix)}
        count = len(reaches(artifact.manifest))
        sizes = {"max_tokens": 512, "max_sequences": 4, "max_rows": 4, "context": 512, "blocks": 32 * count}
        executor = LaunchExecutor(artifact, target, InterpreterDriver(sources), **sizes)
        ids = np.random.default_rng(3).integers(3, executor.vocabulary, SPLIT + 3).astype(np.int32)
        own, short = list(range(1, 1 + BLOCKS)), [OTHER] + [0] * (BLOCKS - 1)

        def step(parts: list[tuple[np.ndarray, int, list[int]]], last: int = 1) -> list[bytes]:
            """Logits of the first part's last tokens."""
            start = np.cumsum([0, *(len(p[0]) for p in parts)]).astype(np.int32)
            positions = np.concatenate([np.arange(p[1], p[1] + len(p[0])) for p in parts]).astype(np.int32)
            first, tables = np.array([p[1] for p in parts], np.int32), np.array([p[2] for p in parts], np.int32)
            rows = np.arange(start[1] - last, start[1], dtype=np.int32)
            every = np.stack([tables + 32 * i for i in range(count)])
            executor.run(Batch(np.concatenate([p[0] for p in parts]), positions, start, first, every, rows, tables[:, 0]))
            return [row.tobytes() for row in executor.logits(last)]

        wanted = step([(ids, 0, own)], 3)
        step([(ids[:SPLIT], 0, own)])
        got = [
            step([(ids[SPLIT + n : SPLIT + n + 1], SPLIT + n, own), *beside])[0]
            for n, beside in ((0, []), (1, [(ids[:1], 0, short)]), (2, [(ids[1:2], 1, short)]))
        ]
        print(json.dumps({"same": [a == b for a, b in zip(got, wanted, strict=True)], "rows": len(set(wanted))}))
        executor.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
