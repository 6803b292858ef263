"""Runs a Plan by Triton's interpreter, in a process of its own: `python interpreter_worker.py ARTIFACT TARGET OUT.npz SEED`.

OUT gets the token ids, the logits of a prefill, and the logits of the same tokens by chunks, in mixed batches, and from a copied block.
"""

from __future__ import annotations

import sys

from llmc.codegen.triton.interpreter import InterpreterDriver, interpret

interpret()

import numpy as np
from llmc.codegen.triton.target import TARGETS
from llmc.runtime.artifact import open_artifact
from llmc.runtime.executors.choose import target_entry
from llmc.runtime.executors.cpu import Batch
from llmc.runtime.executors.launch import LaunchExecutor
from llmc.runtime.executors.split import SplitExecutor
from llmc.runtime.plan import reaches
from llmc.runtime.sampling import SamplingRow

TOKENS = 35
SETTINGS = [(1.0, 1.0, 0.0, 0), (0.7, 0.9, 0.0, 0), (1.3, 1.0, 0.1, 20), (0.9, 0.5, 0.0, 7), (1.0, 1.0, 0.0, 1)]
"""Temperature, top-p, min-p, top-k."""


def changing(i: int) -> SamplingRow:
    """A neighbour that changes its logits, which is drawn elsewhere."""
    return SamplingRow(i % TOKENS, 0.8, 1.0, 0.0, 0, 1.0, 0.5, 0.0, i, 0, output=np.array([3, 4], np.int32))


def main(path: str, target: str, out: str, seed: int) -> None:
    with open_artifact(path) as artifact:
        triton, hip = (
            {m.rpartition("/")[2]: artifact.read(m).decode() for m in artifact.members if m.startswith(f"kernels/{kind}/source/")}
            for kind in ("triton", "hip")
        )
        count = len(reaches(artifact.manifest))
        sizes = {"max_tokens": 64, "max_sequences": 4, "max_rows": 64, "context": 256, "blocks": 16 * count}
        driver = InterpreterDriver(triton, hip, TARGETS[target].warp)
        split = "first" in target_entry(artifact, target)
        executor = (
            SplitExecutor(artifact, target, driver, threads=2, slots=16, **sizes)
            if split
            else LaunchExecutor(artifact, target, driver, **sizes)
        )
        random = np.random.default_rng(seed)
        ids, other = (random.integers(3, executor.vocabulary, n).astype(np.int32) for n in (TOKENS, 9))

        def step(parts: list[tuple[np.ndarray, int, list[int]]]) -> np.ndarray:
            """parts: tokens, the first one's position, blocks, which each table has of its own. Logits of every token."""
            counts = [len(p[0]) for p in parts]
            width = max(len(p[2]) for p in parts)
            tables = np.array([p[2] + [0] * (width - len(p[2])) for p in parts], np.int32)
            positions = np.concatenate([np.arange(p[1], p[1] + len(p[0])) for p in parts]).astype(np.int32)
            start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            total = sum(counts)
            executor.run(
                Batch(
                    np.concatenate([p[0] for p in parts]),
                    positions,
                    start,
                    np.array([p[1] for p in parts], np.int32),
                    np.stack([tables + 16 * i for i in range(count)]),
                    np.arange(total, dtype=np.int32),
                    np.array([p[2][0] for p in parts], np.int32),
                )
            )
            return executor.logits(total).copy()

        prefill = step([(ids, 0, [3, 7])])
        greedy = [d.token for d in executor.sample([SamplingRow(TOKENS - 1, 0.0, 1.0, 0.0, 0, 1.0, 0.0, 0.0, 0, 0)])]
        drawn = [[i % TOKENS, *SETTINGS[i % len(SETTINGS)], int(random.integers(1 << 40))] for i in range(20)]
        rows = [SamplingRow(r, t, p, m, k, 1.0, 0.0, 0.0, seed, r) for r, t, p, m, k, seed in drawn]
        tokens = [d.token for d in executor.sample(rows)]
        alone = [executor.sample([rows[i], changing(i)])[0].token for i in range(4)]
        scored = executor.sample(rows[:3], top=2, logprobs=True)
        assert tokens[:4] == alone and tokens[:3] == [d.token for d in scored] and all(len(d.top) == 2 for d in scored)
        first = step([(ids[:7], 0, [5])])
        second = step([(ids[7:8], 7, [5])])
        third = step([(other, 0, [6]), (ids[8:33], 8, [5, 2])])
        for i in range(count):
            executor.copy_block(16 * i + 2, 16 * i + 9)
        last = [step([(ids[i : i + 1], i, [5, 9]), (other[:1], 0, [11])])[:1] for i in range(33, TOKENS)]
        pieces = np.concatenate([first, second, third[9:], *last])
        np.savez(
            out, ids=ids, prefill=prefill, pieces=pieces, greedy=np.array(greedy), drawn=np.array(drawn), tokens=np.array(tokens)
        )
        executor.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
