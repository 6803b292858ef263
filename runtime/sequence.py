"""A sequence: the only mutable state of a request."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from .blocks import BLOCK, ROOT, BlockPool, chain_hash, first_seen
from .sampling import SamplingParams
from .states import StatePool

_numbers = itertools.count()


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """Known tokens, how many of them are computed, and the blocks that hold them. Owned by the scheduler; changed by nobody else.

    `slot`: where its recurrent states lie while it runs; `snapshot`: the last one taken while it generated.
    `blocks` [tables, columns]: the block of each of the first `held` columns of 32 positions, in each of the pool's tables;
    `forgotten`: how many of a table's first columns have been given back, or were never there.
    `collect`: keep the logits of every position (teacher forcing) instead of sampling. `prompt_logprobs`: score the prompt too.
    """

    prompt: npt.NDArray[np.int32]
    params: SamplingParams
    priority: int = 0
    deadline_s: float | None = None
    collect: bool = False
    prompt_logprobs: int | None = None
    copies: int = 1
    number: int = field(default_factory=lambda: next(_numbers))
    state: State = State.WAITING
    computed: int = 0
    captured: int = 0
    blocks: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((1, 0), np.int32))
    forgotten: list[int] = field(default_factory=list)
    held: int = 0
    slot: int | None = None
    snapshot: bytes | None = None
    index: int = 0
    preemptions: int = 0

    def __post_init__(self) -> None:
        self._tokens = np.empty(
            self.prompt.size + max(16, self.params.max_tokens if self.params.max_tokens < 4096 else 4096), np.int32
        )
        self._tokens[: self.prompt.size] = self.prompt
        self.known = int(self.prompt.size)
        self._hashes: list[bytes] = []

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """All known tokens: the prompt's and the generated ones."""
        return self._tokens[: self.known]

    @property
    def output(self) -> npt.NDArray[np.int32]:
        return self._tokens[self.prompt.size : self.known]

    def append(self, token: int) -> None:
        if self.known == self._tokens.size:
            self._tokens = np.concatenate([self._tokens, np.empty(self._tokens.size, np.int32)])
        self._tokens[self.known] = token
        self.known += 1

    def block_hash(self, i: int) -> bytes:
        """Hash of full block i, and of all before it."""
        while len(self._hashes) <= i:
            n = len(self._hashes)
            self._hashes.append(chain_hash(self._hashes[-1] if self._hashes else ROOT, self._tokens[n * BLOCK : (n + 1) * BLOCK]))
        return self._hashes[i]

    def acquire(self, pool: BlockPool, states: StatePool) -> bool:
        """Take a slot, and over the blocks that already hold a prefix of this sequence, as far as nothing of it must be computed
        again, and as far as the states after it are known. Returns whether there was a slot."""
        self.slot = states.allocate()
        if self.slot is None:
            return False
        limit = self.captured if self.collect or self.prompt_logprobs is not None else self.known - 1
        names = [self.block_hash(i) for i in range(min(limit, self.known - 1) // BLOCK)]
        count = pool.find_prefix(names)
        if states.stateful:
            while count and not states.holds(names[count - 1]):
                known = next((n for n in range(count, 0, -1) if states.holds(names[n - 1])), 0)
                count = pool.find_prefix(names[:known])
            if count:
                states.restore(names[count - 1], self.slot)
        pool.lookups, pool.hits = pool.lookups + len(names), pool.hits + count
        self.forgotten = [first_seen(count * BLOCK, reach) for reach in pool.reaches]
        self._reserve(len(pool.reaches), count)
        for table, first in enumerate(self.forgotten):
            for i in range(first, count):
                block = pool.find(names[i], table)
                assert block is not None
                pool.share(block)
                self.blocks[table, i] = block
        self.held = count
        self.computed = BLOCK * count
        return True

    def _reserve(self, tables: int, columns: int) -> None:
        """Room for that many columns in each table."""
        if self.blocks.shape[0] != tables or self.blocks.shape[1] < columns:
            grown = np.zeros((tables, max(8, 2 * columns)), np.int32)
            if self.held:
                grown[:, : self.held] = self.blocks[:, : self.held]
            self.blocks = grown

    def extend(self, pool: BlockPool) -> bool:
        """Take one block more in each table; returns whether there were as many."""
        tables = len(pool.reaches)
        if pool.free < tables:
            return False
        self._reserve(tables, self.held + 1)
        for table in range(tables):
            block = pool.allocate()
            assert block is not None
            self.blocks[table, self.held] = block
        self.held += 1
        return True

    def share(self, parent: Sequence, pool: BlockPool) -> bool:
        """Be what `parent` is, whose computed prompt this copies: over its full blocks, and one of one's own for what it has of
        another. Returns whether there was a block for that."""
        full = parent.computed // BLOCK
        self._reserve(len(pool.reaches), full + 1)
        partial = parent.computed % BLOCK != 0
        self.held = full
        if partial and not self.extend(pool):
            self.held = 0
            return False
        self.blocks[:, :full] = parent.blocks[:, :full]
        self.forgotten = list(parent.forgotten)
        for table, first in enumerate(self.forgotten):
            for block in self.blocks[table, first:full].tolist():
                pool.share(block)
        self.computed = parent.computed
        return True

    def forget(self, pool: BlockPool) -> None:
        """Give back the blocks that no layer of their table will read again; they stay findable until they are taken."""
        for table, reach in enumerate(pool.reaches):
            first, keep = self.forgotten[table], first_seen(self.computed, reach)
            if keep > first:
                pool.release(self.blocks[table, first:keep].tolist()[::-1])
                self.blocks[table, first:keep] = 0
                self.forgotten[table] = keep

    def release(self, pool: BlockPool, states: StatePool) -> None:
        for table, first in enumerate(self.forgotten):
            pool.release(self.blocks[table, first : self.held].tolist())
        self.forgotten, self.held = [], 0
        self.blocks[:] = 0
        if self.slot is not None:
            states.release(self.slot)
        self.slot = None
        self.computed = 0
