"""The engine: schedule, run, update; and for each request a stream of events that ends with exactly one finish."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import RequestError
from .blocks import BLOCK
from .detokenizer import Detokenizer
from .executors.cpu import Batch
from .sampling import Draw, SamplingParams, SamplingRow
from .scheduler import Scheduler, Slice, Step
from .sequence import Sequence, State

Logits = npt.NDArray[np.float32]


class Executor(Protocol):
    """What the engine needs of a chip: run a step, look at its logits, draw from them, copy a cache block or a slot's states."""

    def run(self, batch: Batch) -> None: ...
    def logits(self, rows: int) -> Logits: ...
    def sample(self, rows: list[SamplingRow], top: int = 0, logprobs: bool = False) -> list[Draw]: ...
    def copy_block(self, source: int, target: int) -> None: ...
    def copy_state(self, source: int, target: int) -> None: ...


@dataclass(slots=True)
class TokenEvent:
    """A token of choice `index`: the text that it makes certain (None without a tokenizer), and its log-probability if asked for."""

    index: int
    token: int
    text: str | None
    draw: Draw


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The one terminal event of choice `index`: `stop`, `length`, `cancelled`, `timeout` or `error`; `text` is what was held back."""

    index: int
    reason: str
    text: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """Log-probabilities of the prompt: for each token after the first, its own and the most likely alternatives."""

    scores: list[Draw]


Event = TokenEvent | FinishEvent | PromptEvent


@dataclass(eq=False)
class Request:
    """A prompt to be completed `n` times. `on_event` is called in the engine's thread and must not block."""

    prompt: npt.NDArray[np.int32]
    params: SamplingParams
    on_event: Callable[[Event], None]
    n: int = 1
    priority: int = 0
    timeout_s: float | None = None
    prompt_logprobs: int | None = None
    make_detokenizer: Callable[[], Detokenizer | None] = lambda: None
    sequences: list[Sequence] = field(default_factory=list)


@dataclass(eq=False)
class _Choice:
    request: Request
    detokenizer: Detokenizer | None
    draws: int = 0


@dataclass
class Counters:
    """What /metrics shows. Histograms are lists of seconds, drained by the reader."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    first_token_s: list[float] = field(default_factory=list)
    between_tokens_s: list[float] = field(default_factory=list)


class Engine:
    """Runs requests on an executor. Not thread-safe: one thread owns it (see EngineThread)."""

    def __init__(self, executor: Executor, scheduler: Scheduler, clock: Callable[[], float] = time.monotonic) -> None:
        self.executor = executor
        self.scheduler = scheduler
        self.counters = Counters()
        self._choices: dict[int, _Choice] = {}
        self._clock = clock
        self._started: dict[int, float] = {}
        self._scores: dict[int, list[Draw]] = {}

    # --- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request; raises RequestError when it can never run or the queue is full."""
        deadline = self._clock() + request.timeout_s if request.timeout_s is not None else None
        sequence = Sequence(
            request.prompt, request.params, request.priority, deadline, prompt_logprobs=request.prompt_logprobs, copies=request.n
        )
        self.scheduler.add(sequence)
        request.sequences.append(sequence)
        self._choices[sequence.number] = _Choice(request, request.make_detokenizer())
        self._started[sequence.number] = self._clock()
        self.counters.prompt_tokens += int(request.prompt.size)

    def cancel(self, request: Request, reason: str = "cancelled") -> None:
        """End a request; its blocks are free at once. Finished choices are left alone."""
        for sequence in list(request.sequences):
            if sequence.state is not State.FINISHED:
                self._finish(sequence, reason)

    @property
    def idle(self) -> bool:
        return self.scheduler.idle

    # --- the loop ---------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Schedule, run, update. Returns whether anything was computed."""
        step = self.scheduler.schedule()
        for sequence in self.scheduler.expired:
            self._end(sequence, "timeout", "the request's deadline has passed")
        self.scheduler.expired.clear()
        if step is None:
            self._unblock()
            return False
        self.executor.run(step.batch)
        self.scheduler.computed(step)
        self.counters.steps += 1
        self._update(step)
        return True

    def _unblock(self) -> None:
        """Nothing fits and nothing runs: the first in the queue never will. End it, rather than wait for ever."""
        if self.scheduler.waiting and not self.scheduler.running:
            self._finish(self.scheduler.waiting[0], "length", "the cache is too small for this request")

    def _update(self, step: Step) -> None:
        rows: list[SamplingRow] = []
        drawn: list[tuple[Sequence, int]] = []
        at = top = 0
        logprobs = False
        for part in step.slices:
            sequence = part.sequence
            if part.rows > 1 or (part.rows and sequence.prompt_logprobs is not None and part.start < sequence.prompt.size):
                self._score_prompt(part, at)
            finished = part.start + part.count == sequence.known and part.rows > 0 and not sequence.collect
            if finished and sequence.params.max_tokens > 0:
                for copy in range(sequence.copies):
                    rows.append(self._row(sequence, at + part.rows - 1, copy))
                    drawn.append((sequence, copy))
                if sequence.params.logprobs is not None:
                    logprobs, top = True, max(top, sequence.params.logprobs)
            elif finished:
                drawn.append((sequence, -1))
            at += part.rows
        draws = self.executor.sample(rows, top, logprobs) if rows else []
        place = 0
        forks: list[tuple[Sequence, list[Draw]]] = []
        for sequence, copy in drawn:
            if copy < 0:
                self._emit_scores(sequence)
                self._finish(sequence, "length")
                continue
            draw, place = draws[place], place + 1
            if copy == 0:
                forks.append((sequence, [draw]))
            else:
                forks[-1][1].append(draw)
        for sequence, mine in forks:
            self._emit_scores(sequence)
            if sequence.number not in self._choices:
                continue  # cancelled by a listener in this very step
            children = self._fork(sequence, mine[1:]) if len(mine) > 1 else []
            for child, draw in [(sequence, mine[0]), *children]:
                self._accept(child, draw)

    def _row(self, sequence: Sequence, row: int, copy: int) -> SamplingRow:
        q = sequence.params
        counts = q.counts_tokens
        bias = np.array([v for _, v in q.logit_bias], np.float32) if q.logit_bias else None
        bias_ids = np.array([t for t, _ in q.logit_bias], np.int32) if q.logit_bias else None
        seed = q.seed + 0x9E3779B97F4A7C15 * (sequence.index + copy)
        return SamplingRow(
            row,
            q.temperature,
            q.top_p,
            q.min_p,
            q.top_k,
            q.repetition_penalty,
            q.presence_penalty,
            q.frequency_penalty,
            seed,
            sequence.known - sequence.prompt.size,
            sequence.prompt if counts else None,
            sequence.output if counts else None,
            bias_ids,
            bias,
        )

    def _fork(self, parent: Sequence, draws: list[Draw]) -> list[tuple[Sequence, Draw]]:
        """Copies of a sequence whose prompt has been computed: full blocks are shared, the last one is copied."""
        made, parent.copies = [], 1
        for i, draw in enumerate(draws, 1):
            child = Sequence(parent.prompt, replace(parent.params), parent.priority, parent.deadline_s, index=i)
            choice = self._choices[parent.number]
            choice.request.sequences.append(child)
            self._choices[child.number] = _Choice(choice.request, choice.request.make_detokenizer())
            self._started[child.number] = self._started[parent.number]
            self._share(parent, child)
            made.append((child, draw))
        return made

    def _share(self, parent: Sequence, child: Sequence) -> None:
        pool, states = self.scheduler.pool, self.scheduler.states
        assert parent.slot is not None
        room = len(self.scheduler.running) < self.scheduler.max_sequences
        if room and child.share(parent, pool):
            child.slot = states.clone(parent.slot)
            if child.slot is None:
                child.release(pool, states)
        if child.slot is None:
            self.scheduler.requeue(child)  # no room for a copy: it computes its prompt, mostly from the prefix cache
            return
        if child.computed % BLOCK:
            last = child.held - 1
            for source, target in zip(parent.blocks[:, last].tolist(), child.blocks[:, last].tolist(), strict=True):
                self.executor.copy_block(source, target)
        self.scheduler.adopt(child)

    # --- results ----------------------------------------------------------------------------------------------------

    def _accept(self, sequence: Sequence, draw: Draw) -> None:
        choice = self._choices.get(sequence.number)
        if choice is None:
            return
        now, params = self._clock(), sequence.params
        (self.counters.first_token_s if choice.draws == 0 else self.counters.between_tokens_s).append(
            now - self._started[sequence.number]
        )
        self._started[sequence.number] = now
        choice.draws += 1
        self.counters.generated_tokens += 1
        sequence.append(draw.token)
        ended = draw.token in params.stop_token_ids and not params.ignore_eos
        text = None
        if choice.detokenizer is not None:
            text = "" if ended else choice.detokenizer.push(draw.token)
        choice.request.on_event(TokenEvent(sequence.index, draw.token, text, draw))
        if ended or (choice.detokenizer is not None and choice.detokenizer.stopped):
            self._finish(sequence, "stop")
        elif sequence.output.size >= params.max_tokens or sequence.known >= self.scheduler.context:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: str, message: str = "") -> None:
        self.scheduler.finish(sequence)
        self._end(sequence, reason, message)

    def _end(self, sequence: Sequence, reason: str, message: str = "") -> None:
        choice = self._choices.pop(sequence.number, None)
        self._started.pop(sequence.number, None)
        self._scores.pop(sequence.number, None)
        if choice is None:
            return
        self.counters.finished[reason] = self.counters.finished.get(reason, 0) + 1
        rest = choice.detokenizer.finish() if choice.detokenizer is not None else None
        if choice.detokenizer is not None and choice.detokenizer.stopped and reason == "length":
            reason = "stop"
        copies, sequence.copies = sequence.copies, 1
        choice.request.on_event(FinishEvent(sequence.index, reason, rest, message))
        for index in range(1, copies):
            choice.request.on_event(FinishEvent(index, reason, None, message))

    def _score_prompt(self, part: Slice, at: int) -> None:
        """Log-probabilities of the prompt's tokens that these rows predict."""
        sequence = part.sequence
        rows = self.executor.logits(at + part.rows)[at:]
        top = sequence.prompt_logprobs or 0
        scores = self._scores.setdefault(sequence.number, [])
        for i in range(part.rows):
            target = part.start + part.count - part.rows + i + 1
            if target >= sequence.prompt.size or target != len(scores) + 1:
                continue
            row = rows[i].astype(np.float64)
            row -= row.max()
            row -= np.log(np.exp(row).sum())
            token = int(sequence.prompt[target])
            best = np.argsort(-row, kind="stable")[:top].tolist() if top else []
            scores.append(Draw(token, float(row[token]), [(int(t), float(row[t])) for t in best]))

    def _emit_scores(self, sequence: Sequence) -> None:
        scores = self._scores.pop(sequence.number, None)
        if scores is not None:
            sequence.prompt_logprobs = None  # told: a preemption must not score the prompt again
            self._choices[sequence.number].request.on_event(PromptEvent(scores))

    # --- teacher forcing ----------------------------------------------------------------------------------------------

    def force(
        self,
        prompts: list[npt.NDArray[np.int32]],
        visit: Callable[[Step, dict[int, int]], None],
        disturb: Callable[[Scheduler], None] | None = None,
    ) -> None:
        """Compute every position of every prompt. After each step, `visit(step, index of each sequence's prompt by number)`
        may look at the logits of the step's rows; `disturb` may preempt between steps."""
        sequences = [Sequence(p, SamplingParams(max_tokens=0), collect=True) for p in prompts]
        index = {s.number: i for i, s in enumerate(sequences)}
        waiting, open_now = list(sequences), list[Sequence]()
        while waiting or open_now:
            while waiting and len(open_now) < self.scheduler.max_sequences:
                self.scheduler.add(waiting[0])
                open_now.append(waiting.pop(0))
            step = self.scheduler.schedule()
            if step is None:
                raise RequestError("the cache is too small for one sequence", param="prompt")
            self.executor.run(step.batch)
            self.scheduler.computed(step)
            visit(step, index)
            for sequence in [s for s in open_now if s.computed == s.known]:
                self.scheduler.finish(sequence)
                open_now.remove(sequence)
            if disturb is not None:
                disturb(self.scheduler)

    def collect(self, prompts: list[npt.NDArray[np.int32]], disturb: Callable[[Scheduler], None] | None = None) -> list[Logits]:
        """Logits of every position of every prompt, [T, V] each."""
        out: list[Logits] = []

        def visit(step: Step, index: dict[int, int]) -> None:
            at = 0
            rows = self.executor.logits(sum(part.rows for part in step.slices))
            if not out:
                out.extend(np.empty((p.size, rows.shape[1]), np.float32) for p in prompts)
            for part in step.slices:
                out[index[part.sequence.number]][part.start : part.start + part.rows] = rows[at : at + part.rows]
                at += part.rows

        self.force(prompts, visit, disturb)
        return out
