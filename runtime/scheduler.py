"""The scheduler: who computes how many tokens in the next step.

There is no prefill phase and no decode phase: computed tokens catch up with known tokens, within a budget of tokens a step.
Chunked prefill, continuous batching and recompute after preemption all follow from that rule.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import RequestError
from .blocks import BLOCK, BlockPool
from .executors.cpu import Batch
from .plan import held_blocks, positions_within
from .sequence import Sequence, State
from .states import StatePool


@dataclass(slots=True)
class Slice:
    """A sequence's part of a step: `count` tokens from position `start`; logits of the last `rows` of them."""

    sequence: Sequence
    start: int
    count: int
    rows: int


@dataclass(slots=True)
class Step:
    """What one call of the executor computes."""

    slices: tuple[Slice, ...]
    batch: Batch

    @property
    def tokens(self) -> int:
        return int(self.batch.ids.size)


class Scheduler:
    """Owns the queues and the sequences' state. `schedule()` gives the next step, `computed(step)` books it.

    A step has up to `max_tokens` tokens; one in which requests also generate up to `mixed_tokens` (by default as many), or twice as many as
    generate.

    Blocks that fell out of what the layers of their table see are given back.
    """

    def __init__(
        self,
        pool: BlockPool,
        states: StatePool | None = None,
        *,
        max_tokens: int,
        max_sequences: int,
        max_rows: int,
        context: int,
        mixed_tokens: int | None = None,
        max_waiting: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.states = states or StatePool(0, lambda source, target: None)
        pool.forgotten = self.states.drop
        self.max_tokens, self.max_sequences, self.max_rows, self.context = max_tokens, max_sequences, max_rows, context
        self.mixed_tokens = max_tokens if mixed_tokens is None else min(mixed_tokens, max_tokens)
        self.max_waiting = max_waiting
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.expired: list[Sequence] = []
        self.preemptions = 0
        self.chunk: Callable[[Sequence, int], int] | None = None
        self._clock = clock

    def add(self, sequence: Sequence) -> None:
        """Admit a sequence; raises RequestError when it can never run, or when the queue is full."""
        need = sequence.prompt.size + (0 if sequence.collect else 1)
        if sequence.prompt.size < 1:
            raise RequestError("the prompt is empty", param="prompt")
        if need > self.context:
            raise RequestError(
                f"the prompt has {sequence.prompt.size} tokens; this model serves {self.context} positions, the answer included",
                param="prompt",
                code="context_length_exceeded",
            )
        if held_blocks(need, self.pool.reaches, self.max_tokens) > self.pool.count:
            most = positions_within(self.pool.count, self.pool.reaches, self.max_tokens, self.context)
            raise RequestError(
                f"the prompt has {sequence.prompt.size} tokens; the cache holds {most}",
                param="prompt",
                code="context_length_exceeded",
            )
        if len(self.waiting) >= self.max_waiting:
            raise RequestError("too many requests are waiting", status=429, kind="rate_limit_error", code="queue_full")
        self._enqueue(sequence)

    def adopt(self, sequence: Sequence) -> None:
        """Take in a sequence that already owns computed blocks (a copy of another)."""
        sequence.state = State.RUNNING
        self.running.append(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """Put back a sequence that must compute its tokens (again)."""
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.state = State.WAITING
        self.waiting.append(sequence)
        self.waiting.sort(key=lambda s: (-s.priority, s.number))

    def finish(self, sequence: Sequence) -> None:
        """Remove a sequence, whatever its state; its blocks are free at once."""
        if sequence.state is State.FINISHED:
            return
        (self.running if sequence.state is State.RUNNING else self.waiting).remove(sequence)
        sequence.release(self.pool, self.states)
        sequence.state = State.FINISHED

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def schedule(self) -> Step | None:
        """The next step, or None when nothing can be computed. Sequences past their deadline go to `expired`."""
        self._expire()
        budget, rows_left = self._budget(), self.max_rows
        slices: list[Slice] = []
        for sequence in sorted(self.running, key=lambda s: s.known - s.computed > 1):  # those that generate first
            if sequence.state is not State.RUNNING or budget == 0:
                continue
            made = self._slice(sequence, budget, rows_left, can_preempt=True)
            if made is not None:
                slices.append(made)
                budget, rows_left = budget - made.count, rows_left - made.rows
        slices = [s for s in slices if s.sequence.state is State.RUNNING]
        preempted = any(s.computed == 0 and s.preemptions for s in self.waiting[:1])
        while self.waiting and budget > 0 and len(self.running) < self.max_sequences:
            if preempted and slices and self.pool.free < self.pool.count // 8:
                break  # what was just preempted would only push others out again
            sequence = self.waiting[0]
            if not sequence.acquire(self.pool, self.states):
                break
            made = self._slice(sequence, budget, rows_left, can_preempt=False)
            if made is None:
                sequence.release(self.pool, self.states)
                break
            self.waiting.pop(0)
            sequence.state = State.RUNNING
            self.running.append(sequence)
            slices.append(made)
            budget, rows_left = budget - made.count, rows_left - made.rows
        return Step(tuple(slices), self._batch(slices)) if slices else None

    def computed(self, step: Step) -> None:
        """Book a step that the executor has run: tokens count as computed, full blocks can be found."""
        for part in step.slices:
            sequence = part.sequence
            if sequence.state is not State.RUNNING:
                continue
            before = sequence.computed // BLOCK
            sequence.computed = part.start + part.count
            if sequence.collect or sequence.prompt_logprobs is not None:
                sequence.captured = max(sequence.captured, sequence.computed)
            for i in range(before, sequence.computed // BLOCK):
                for table in range(len(self.pool.reaches)):
                    self.pool.register(int(sequence.blocks[table, i]), sequence.block_hash(i), table)
            if self.states.stateful and sequence.computed % BLOCK == 0:
                self._snapshot(sequence)
            sequence.forget(self.pool)

    def _snapshot(self, sequence: Sequence) -> None:
        """Keep the states after a block: the one in which the prompt's last whole block ends, and the last one after it."""
        assert sequence.slot is not None
        name = sequence.block_hash(sequence.computed // BLOCK - 1)
        if sequence.computed >= sequence.prompt.size:
            if sequence.snapshot is not None:
                self.states.drop(sequence.snapshot)
            sequence.snapshot = name
        elif sequence.computed + BLOCK < sequence.prompt.size:
            return  # inside a long prompt
        self.states.save(name, sequence.slot)

    def preempt(self, sequence: Sequence) -> None:
        """Give a running sequence's blocks back; it will compute its tokens again."""
        self.running.remove(sequence)
        sequence.release(self.pool, self.states)
        sequence.preemptions += 1
        self.preemptions += 1
        self._enqueue(sequence)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        now = self._clock()
        for sequence in [s for s in (*self.running, *self.waiting) if s.deadline_s is not None and s.deadline_s < now]:
            self.finish(sequence)
            self.expired.append(sequence)

    def _budget(self) -> int:
        """Tokens of the next step. While requests generate, prompts may fill a step up to `mixed_tokens` or double its rows, no more. Where
        few generate and many wait, those many come first."""
        generating = sum(sequence.known - sequence.computed == 1 for sequence in self.running)
        reading = len(self.running) + len(self.waiting) - generating
        return self.max_tokens if 3 * generating <= reading else min(self.max_tokens, max(self.mixed_tokens, 2 * generating))

    def _slice(self, sequence: Sequence, budget: int, rows_left: int, *, can_preempt: bool) -> Slice | None:
        count = min(sequence.known - sequence.computed, budget)
        if self.chunk is not None:
            count = max(1, min(count, self.chunk(sequence, count)))
        if self.states.stateful:  # end where a snapshot of the states can be used again
            whole = (sequence.known - 1) // BLOCK * BLOCK - sequence.computed
            count = whole if 0 < whole < count else count
        rows = self._rows(sequence, count)
        if rows > rows_left:
            if not self._collects(sequence) or rows_left == 0:
                return None
            count = rows = rows_left
        while -(-(sequence.computed + count) // BLOCK) > sequence.held:
            if sequence.extend(self.pool):
                continue
            victim = self._victim(sequence) if can_preempt else None
            if victim is None:
                fits = sequence.held * BLOCK - sequence.computed
                if can_preempt or fits <= 0:
                    if can_preempt and len(self.running) > 1:
                        self.preempt(sequence)
                    elif fits > 0:
                        count = min(count, fits)
                        rows = self._rows(sequence, count)
                        break
                    return None
                count = min(count, fits)
                rows = self._rows(sequence, count)
                break
            self.preempt(victim)
        return Slice(sequence, sequence.computed, count, rows)

    def _collects(self, sequence: Sequence) -> bool:
        return sequence.collect or (sequence.prompt_logprobs is not None and sequence.computed < sequence.prompt.size)

    def _rows(self, sequence: Sequence, count: int) -> int:
        if self._collects(sequence):
            return count
        return 1 if sequence.computed + count == sequence.known else 0

    def _victim(self, asking: Sequence) -> Sequence | None:
        """The running sequence to preempt: of the lowest priority, the last to come; never one before the asking one."""
        order = sorted(self.running, key=lambda s: (-s.priority, s.number))
        last = order[-1]
        return last if last is not asking and (-last.priority, last.number) > (-asking.priority, asking.number) else None

    def _batch(self, slices: list[Slice]) -> Batch:
        ends = list(itertools.accumulate([part.count for part in slices], initial=0))
        ids, positions = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.int32)
        width = max([part.start + part.count + BLOCK - 1 for part in slices]) // BLOCK
        tables = np.zeros((len(self.pool.reaches), len(slices), width), np.int32)
        rows: list[int] = []
        for i, part in enumerate(slices):
            sequence, begin, count, end = part.sequence, part.start, part.count, ends[i + 1]
            ids[end - count : end] = sequence.tokens[begin : begin + count]
            positions[end - count : end] = begin if count == 1 else np.arange(begin, begin + count)
            held = min(sequence.held, width)
            tables[:, i, :held] = sequence.blocks[:, :held]
            rows.extend(range(end - part.rows, end))
        pos = np.array([part.start for part in slices], np.int32)
        slots = np.array([part.sequence.slot for part in slices], np.int32)
        return Batch(ids, positions, np.array(ends, np.int32), pos, tables, np.array(rows, np.int32), slots)

    def check_integrity(self) -> None:
        """Assert that every block's users are exactly the sequences that hold it."""
        self.pool.check_integrity()
        self.states.check_integrity()
        if self.states.stateful:
            slots = [s.slot for s in self.running]
            assert None not in slots and len(set(slots)) == len(slots) == self.states.used, slots
        held: dict[int, int] = {}
        for sequence in (*self.running, *self.waiting):
            for table, first in enumerate(sequence.forgotten):
                assert not sequence.blocks[table, :first].any()
                for block in sequence.blocks[table, first : sequence.held].tolist():
                    held[block] = held.get(block, 0) + 1
            assert sequence.computed <= sequence.held * BLOCK
            assert sequence.computed <= sequence.known
        assert all(not s.held and s.slot is None for s in self.waiting)
        assert len(held) == self.pool.used, (len(held), self.pool.used)
