"""An executor without a model: its cache and states hold hashes of prefixes, so a wrong block, slot, position or copy shows."""

from __future__ import annotations

import hashlib

import numpy as np
from llmc.runtime.blocks import BLOCK
from llmc.runtime.sampling import Draw

VOCABULARY = 50


def next_hash(before: bytes, token: int) -> bytes:
    return hashlib.blake2b(before + int(token).to_bytes(4, "little"), digest_size=8).digest()


def logits_of(prefix: bytes) -> np.ndarray:
    seed = int.from_bytes(prefix, "little")
    return np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32)


def choose(prefix: bytes, temperature: float, seed: int, counter: int) -> int:
    """The token that a row gives: a function of its whole prefix, and when sampling of seed and place."""
    if temperature <= 0:
        return int(logits_of(prefix).argmax())
    return (
        int.from_bytes(hashlib.blake2b(prefix + f"{seed % 2**64} {counter}".encode(), digest_size=4).digest(), "little")
        % VOCABULARY
    )


def prefix_of(tokens) -> bytes:
    out = b""
    for token in tokens:
        out = next_hash(out, token)
    return out


class FakeExecutor:
    """Checks every batch against its own cache; `steps` are the sizes of the batches that it has run."""

    def __init__(self, blocks: int, slots: int = 0, reaches: tuple[int, ...] = (0,)) -> None:
        self.reaches = reaches
        self.parent: dict[bytes, bytes] = {}
        self.states: list[bytes | None] = [None] * slots
        self.cache: list[list[bytes | None]] = [[None] * BLOCK for _ in range(blocks)]
        self.rows: list[bytes] = []
        self.steps: list[int] = []

    def run(self, batch) -> None:
        assert batch.start[0] == 0 and batch.start[-1] == batch.ids.size == batch.positions.size
        hashes: list[bytes] = []
        for s in range(batch.pos.size):
            tables = batch.block_tables[:, s]
            for i in range(batch.start[s], batch.start[s + 1]):
                position = int(batch.positions[i])
                assert position == batch.pos[s] + i - batch.start[s]
                before = b""
                for table, reach in zip(tables, self.reaches, strict=True):
                    seen = before = b"" if not position else self.at(table, position - 1)
                    for p in range(
                        position - 2, max(-1, position - reach), -1
                    ):  # all that a layer sees, which writes this position too
                        seen = self.parent[seen]
                        assert self.at(table, p) == seen, "a position of another prefix is read"
                slot = int(batch.slots[s])
                assert not self.states or not position or self.states[slot] == before, "a state of another prefix"
                made = next_hash(before, int(batch.ids[i]))
                if self.states:
                    self.states[slot] = made
                self.parent[made] = before
                for table in tables:
                    self.cache[table[position // BLOCK]][position % BLOCK] = made
                hashes.append(made)
        self.rows = [hashes[i] for i in batch.row_tokens]
        self.steps.append(batch.ids.size)

    def at(self, table, position: int) -> bytes:
        found = self.cache[table[position // BLOCK]][position % BLOCK]
        assert found is not None, "a position is read that was never written"
        return found

    def logits(self, rows: int) -> np.ndarray:
        return np.array([logits_of(h) for h in self.rows[:rows]])

    def sample(self, rows, top=0, logprobs=False) -> list[Draw]:
        return [Draw(choose(self.rows[r.row], r.temperature, r.seed, r.counter)) for r in rows]

    def copy_block(self, source: int, target: int) -> None:
        self.cache[target] = list(self.cache[source])

    def copy_state(self, source: int, target: int) -> None:
        self.states[target] = self.states[source]
