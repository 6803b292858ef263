"""The block pool: counts, the free queue in eviction order, and prefixes that stay findable until their block is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from llmc.runtime.blocks import BLOCK, ROOT, BlockPool, chain_hash


class Pool(RuleBasedStateMachine):
    """Any order of calls, against a model of who holds what."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(6)
        self.held: list[int] = []
        self.names: dict[bytes, int] = {}

    @rule()
    def allocate(self):
        block = self.pool.allocate()
        assert (block is None) == (len(set(self.held)) == 6)
        if block is not None:
            assert block not in self.held
            self.names = {n: b for n, b in self.names.items() if b != block}
            self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        block = data.draw(st.sampled_from(self.held))
        self.held.remove(block)
        self.pool.release([block])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), name=st.integers(0, 9))
    def register(self, data, name):
        block, key = data.draw(st.sampled_from(self.held)), bytes([name])
        self.pool.register(block, key)
        if key not in self.names and block not in self.names.values():
            self.names[key] = block

    @rule(name=st.integers(0, 9))
    def find_and_share(self, name):
        block = self.pool.find(bytes([name]))
        assert block == self.names.get(bytes([name]))
        if block is not None:
            self.pool.share(block)
            self.held.append(block)
            assert self.pool.is_shared(block) == (self.held.count(block) > 1)

    @rule()
    def forget(self):
        self.pool.forget_prefixes()
        self.names = {}

    @invariant()
    def whole(self):
        self.pool.check_integrity()
        assert self.pool.used == len(set(self.held)) and self.pool.free == 6 - self.pool.used


TestPool = Pool.TestCase


def test_the_least_recently_freed_block_goes_first_and_a_sequences_last_block_before_its_first():
    pool = BlockPool(3)
    blocks = [pool.allocate() for _ in range(3)]
    pool.release(blocks)
    assert [pool.allocate() for _ in range(3)] == blocks[::-1]


def test_releasing_more_than_is_held_is_a_bug_that_shows():
    pool = BlockPool(1)
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(AssertionError):
        pool.release([block])


def test_a_blocks_name_depends_on_everything_before_it():
    a, b = np.arange(BLOCK, dtype=np.int32), np.arange(1, BLOCK + 1, dtype=np.int32)
    assert chain_hash(ROOT, a) != chain_hash(ROOT, b)
    assert chain_hash(chain_hash(ROOT, a), b) != chain_hash(chain_hash(ROOT, b), b)
