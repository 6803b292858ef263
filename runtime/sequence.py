"""A sequence: the only mutable state of a request."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from .blocks import BLOCK, ROOT, BlockPool, chain_hash
from .sampling import SamplingParams
from .states import StatePool

_numbers = itertools.count()
NONE = -1
"""In place of a block that has been given back."""


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """Known tokens, how many of them are computed, and the blocks that hold them. Owned by the scheduler; changed by nobody else.

    `slot`: where its recurrent states lie while it runs; `snapshot`: the last one taken while it generated.
    `forgotten`: how many of the first blocks have been given back.
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
    blocks: list[int] = field(default_factory=list)
    forgotten: int = 0
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
        found: list[int] = []
        for i in range(min(limit, self.known - 1) // BLOCK):
            block = pool.find(self.block_hash(i))
            if block is None:
                break
            found.append(block)
        if states.stateful:
            while found and not states.holds(self.block_hash(len(found) - 1)):
                found.pop()
            if found:
                states.restore(self.block_hash(len(found) - 1), self.slot)
        for block in found:
            pool.share(block)
        self.blocks = found
        self.computed = BLOCK * len(found)
        return True

    def forget(self, count: int, pool: BlockPool) -> None:
        """Give back the first `count` blocks, which no layer will read again; they stay findable until they are taken."""
        for i in range(self.forgotten, count):
            pool.release([self.blocks[i]])
            self.blocks[i] = NONE
        self.forgotten = max(self.forgotten, count)

    def release(self, pool: BlockPool, states: StatePool) -> None:
        pool.release(self.blocks[self.forgotten :])
        self.forgotten = 0
        if self.slot is not None:
            states.release(self.slot)
        self.blocks, self.slot = [], None
        self.computed = 0
