"""The block pool: who uses which cache block, and which blocks hold a prefix that may be used again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

BLOCK = 32
"""Positions in a block, as the kernels lay it out."""
ROOT = b""


def first_seen(computed: int, reach: int) -> int:
    """The first block that a position after `computed` others still needs, where it sees `reach` positions, itself included (0: all)."""
    return max(0, computed - reach + 1) // BLOCK if reach else 0


def chain_hash(parent: bytes, tokens: npt.NDArray[np.int32]) -> bytes:
    """The name of a full block: a hash of its tokens and of everything before them."""
    return hashlib.blake2b(parent + tokens.astype("<i4").tobytes(), digest_size=16).digest()


def _of_table(name: bytes, table: int) -> bytes:
    return name + table.to_bytes(2, "little") if table else name


class BlockPool:
    """Owns block ids, their reference counts and the hashes of full blocks.

    A block whose count falls to zero stays findable until it is taken again; blocks are taken in the order in which they were
    freed, so the prefix cache is evicted from the least recently used, a sequence's last block first. `forgotten` is told the hash
    of a block that is taken again. A sequence has a table of blocks for each of `reaches`: how many positions the layers that use
    that table see at most, 0 for all.
    """

    def __init__(self, count: int, reaches: tuple[int, ...] = (0,)) -> None:
        self.count = count
        self.reaches = reaches
        self._references = [0] * count
        self._free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(count))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self.forgotten: Callable[[bytes], None] = lambda name: None
        self.hits = 0
        self.lookups = 0

    @property
    def free(self) -> int:
        """Blocks that nobody uses, those with a findable prefix included."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.count - len(self._free)

    def allocate(self) -> int | None:
        """A block of one's own, or None when all are in use."""
        if not self._free:
            return None
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more user of a block."""
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One user less of each; the last ones become the first to be evicted."""
        for block in reversed(blocks):
            if self._references[block] <= 0:
                raise AssertionError(f"block {block} is released more often than it is used")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None

    def register(self, block: int, name: bytes, table: int = 0) -> None:
        """A block of a table has become full: its prefix can be found under its hash. The first block with a hash keeps it."""
        name = _of_table(name, table)
        if name not in self._block_of and block not in self._hash_of:
            self._block_of[name] = block
            self._hash_of[block] = name

    def find(self, name: bytes, table: int = 0) -> int | None:
        """The block of a table that holds a prefix, if it is still there."""
        return self._block_of.get(_of_table(name, table))

    def find_prefix(self, names: Sequence[bytes]) -> int:
        """How many of the first blocks, called `names`, a new sequence need not compute: after them, each table still has what its
        layers see."""
        whole = [table for table, reach in enumerate(self.reaches) if not reach]
        count = next((i for i, name in enumerate(names) if any(self.find(name, t) is None for t in whole)), len(names))
        found = None
        while found != count:  # a window that lacks a block ends the prefix before it, and the windows then need others
            found = count
            for table, reach in enumerate(self.reaches):
                seen = range(count - 1, first_seen(count * BLOCK, reach) - 1, -1) if reach else ()
                count = next((i for i in seen if self.find(names[i], table) is None), count)
        return count

    def is_shared(self, block: int) -> bool:
        return self._references[block] > 1

    def forget_prefixes(self) -> None:
        """Drop the prefix cache; blocks in use stay in use."""
        self._hash_of.clear()
        self._block_of.clear()

    def _forget(self, block: int) -> None:
        name = self._hash_of.pop(block, None)
        if name is not None:
            del self._block_of[name]
            self.forgotten(name)

    def check_integrity(self) -> None:
        """Assert the invariants: free exactly when unused, and the two hash tables inverse to each other."""
        for block in range(self.count):
            assert (self._references[block] == 0) == (block in self._free), f"block {block}"
            assert self._references[block] >= 0
        assert {b: h for h, b in self._block_of.items()} == self._hash_of
