"""The engine and its scheduler on a fake executor: nothing lost, nothing said twice, and the text that each request would get alone."""

from __future__ import annotations

import numpy as np
import pytest
from fake_executor import VOCABULARY, FakeExecutor, choose, logits_of, next_hash, prefix_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from llmc.errors import RequestError
from llmc.runtime.blocks import BLOCK, BlockPool
from llmc.runtime.engine import Engine, FinishEvent, PromptEvent, Request, TokenEvent
from llmc.runtime.sampling import SamplingParams
from llmc.runtime.scheduler import Scheduler
from llmc.runtime.sequence import Sequence
from llmc.runtime.states import StatePool


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def engine_with(
    blocks=8,
    *,
    max_tokens=16,
    max_sequences=4,
    max_rows=8,
    max_waiting=1024,
    context=None,
    slots=0,
    reaches=(0,),
    mixed_tokens=None,
):
    clock, executor = Clock(), FakeExecutor(blocks, slots, reaches)
    scheduler = Scheduler(
        BlockPool(blocks, reaches),
        StatePool(slots, executor.copy_state),
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        max_rows=max_rows,
        context=context or blocks * BLOCK,
        mixed_tokens=mixed_tokens,
        max_waiting=max_waiting,
        clock=clock,
    )
    return Engine(executor, scheduler, clock), clock


def request(prompt, *, n=1, priority=0, timeout_s=None, prompt_logprobs=None, **params):
    events = []
    made = Request(
        np.array(prompt, np.int32),
        SamplingParams(**{"temperature": 0.0, "max_tokens": 4, **params}),
        events.append,
        n,
        priority,
        timeout_s,
        prompt_logprobs,
    )
    made.events = events
    return made


def finish(engine, limit=10_000):
    for _ in range(limit):
        if engine.idle:
            return
        engine.step()
        engine.scheduler.check_integrity()
    raise AssertionError("the engine does not come to an end")


def tokens(r, index=0):
    return [e.token for e in r.events if isinstance(e, TokenEvent) and e.index == index]


def ends(r):
    return {i: [e.reason for e in r.events if isinstance(e, FinishEvent) and e.index == i] for i in range(r.n)}


def expected(r, index=0, context=10**9):
    """What choice `index` must say, by the fake's definition, computed without any engine."""
    p, known, out = r.params, [int(t) for t in r.prompt], []
    state = prefix_of(known)
    seed = p.seed + 0x9E3779B97F4A7C15 * index
    while len(out) < p.max_tokens and len(known) < context:
        token = choose(state, p.temperature, seed, len(out))
        out.append(token)
        known.append(token)
        state = next_hash(state, token)
        if token in p.stop_token_ids and not p.ignore_eos:
            break
    return out


def test_one_request_gets_its_tokens_and_one_end():
    engine, _ = engine_with()
    r = request(range(40), max_tokens=7)
    engine.submit(r)
    finish(engine)
    assert tokens(r) == expected(r) and ends(r) == {0: ["length"]}
    assert isinstance(r.events[-1], FinishEvent) and engine.scheduler.pool.used == 0


def test_prompts_are_cut_to_the_step_and_share_it():
    engine, _ = engine_with(max_tokens=16)
    long, short = request(range(40), max_tokens=2), request([1], max_tokens=2)
    engine.submit(long)
    engine.submit(short)
    finish(engine)
    assert max(engine.executor.steps) <= 16 and engine.executor.steps[0] == 16
    assert tokens(long) == expected(long) and tokens(short) == expected(short)


def test_preemption_gives_blocks_to_the_older_request_and_changes_no_text():
    engine, _ = engine_with(blocks=4, max_tokens=64)
    requests = [request([i] * 30, max_tokens=60) for i in range(3)]
    for r in requests:
        engine.submit(r)
    finish(engine)
    assert engine.scheduler.preemptions > 0
    for r in requests:
        assert tokens(r) == expected(r) and ends(r) == {0: ["length"]}


def test_the_higher_priority_runs_first_and_is_not_preempted_for_the_lower():
    engine, _ = engine_with(max_sequences=1)
    low, high = request([1], priority=0), request([2], priority=5)
    engine.submit(low)
    engine.submit(high)
    order = []
    low.on_event, high.on_event = (lambda e: order.append("low")), (lambda e: order.append("high"))
    finish(engine)
    assert order == ["high"] * 5 + ["low"] * 5


def test_a_deadline_ends_waiting_and_running_requests():
    engine, clock = engine_with(max_sequences=1)
    running, waiting = request([1], max_tokens=100, timeout_s=5), request([2], timeout_s=5)
    engine.submit(running)
    engine.submit(waiting)
    engine.step()
    clock.now = 6.0
    finish(engine)
    assert ends(running) == {0: ["timeout"]} and ends(waiting) == {0: ["timeout"]} and len(tokens(running)) == 1


def test_a_deadline_ends_every_choice_of_a_request_that_never_ran():
    engine, clock = engine_with(max_sequences=1)
    engine.submit(request([1], max_tokens=100))
    engine.step()
    r = request([2], n=3, timeout_s=5)
    engine.submit(r)
    clock.now = 6.0
    engine.step()
    assert ends(r) == {0: ["timeout"], 1: ["timeout"], 2: ["timeout"]}


def test_scoring_a_prompt_alone_ends_every_choice():
    """max_tokens 0 with several choices: each has nothing to say, and each must say so."""
    engine, _ = engine_with()
    r = request(range(5), n=2, max_tokens=0, prompt_logprobs=0)
    engine.submit(r)
    finish(engine)
    assert ends(r) == {0: ["length"], 1: ["length"]}


def test_cancelling_ends_every_choice_once_however_often():
    engine, _ = engine_with(max_sequences=1)
    busy, waiting = request([1], max_tokens=100), request([2], n=3)
    engine.submit(busy)
    engine.submit(waiting)
    engine.step()
    for r in (busy, waiting):
        engine.cancel(r)
        engine.cancel(r)
    assert ends(busy) == {0: ["cancelled"]} and ends(waiting) == {0: ["cancelled"], 1: ["cancelled"], 2: ["cancelled"]}
    assert engine.idle and engine.scheduler.pool.used == 0


def test_a_listener_may_cancel_another_request_of_the_same_step():
    """As a server does that drops a client's requests together."""
    engine, _ = engine_with()
    first, second = request([1]), request([2], n=2)
    collect = first.on_event
    first.on_event = lambda e: (collect(e), engine.cancel(second))
    engine.submit(first)
    engine.submit(second)
    finish(engine)
    assert ends(first) == {0: ["length"]} and ends(second) == {0: ["cancelled"], 1: ["cancelled"]}


def test_the_queue_has_a_limit():
    engine, _ = engine_with(max_waiting=2)
    engine.submit(request([1]))
    engine.submit(request([1]))
    refused = request([1])
    with pytest.raises(RequestError) as error:
        engine.submit(refused)
    assert error.value.status == 429
    finish(engine)
    assert not refused.events


@pytest.mark.parametrize(
    ("prompt", "code"),
    [([], None), (range(8 * BLOCK), "context_length_exceeded"), (range(1000), "context_length_exceeded")],
    ids=["empty", "no room for an answer", "too long"],
)
def test_requests_that_can_never_run_are_refused(prompt, code):
    engine, _ = engine_with(blocks=8)
    with pytest.raises(RequestError) as error:
        engine.submit(request(prompt))
    assert error.value.code == code and engine.idle


def test_a_text_ends_at_the_context():
    engine, _ = engine_with(blocks=2)
    r = request(range(60), max_tokens=100)
    engine.submit(r)
    finish(engine)
    assert len(tokens(r)) == 2 * BLOCK - 60 and ends(r) == {0: ["length"]}


def test_the_end_token_ends_a_text_unless_ignored():
    engine, _ = engine_with()
    first = expected(request([7], max_tokens=3))
    stops, ignores = (
        request([7], max_tokens=3, stop_token_ids=frozenset(first[1:2])),
        request([7], max_tokens=3, stop_token_ids=frozenset(first[1:2]), ignore_eos=True),
    )
    engine.submit(stops)
    engine.submit(ignores)
    finish(engine)
    assert tokens(stops) == first[: first.index(first[1]) + 1] and ends(stops) == {0: ["stop"]}
    assert tokens(ignores) == first and ends(ignores) == {0: ["length"]}


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 70])
def test_choices_share_the_prompt_and_differ_in_their_seed(length):
    engine, _ = engine_with(blocks=16)
    r = request(range(length), n=3, temperature=1.0, seed=11, max_tokens=40)
    engine.submit(r)
    finish(engine)
    for i in range(3):
        assert tokens(r, i) == expected(r, i)
    assert ends(r) == {i: ["length"] for i in range(3)} and tokens(r, 0) != tokens(r, 1)
    assert engine.scheduler.pool.used == 0


def test_more_choices_than_places_or_blocks_still_all_finish():
    engine, _ = engine_with(blocks=3, max_sequences=2)
    r = request(range(40), n=5, temperature=1.0, max_tokens=20)
    engine.submit(r)
    finish(engine)
    assert all(tokens(r, i) == expected(r, i) for i in range(5)) and all(len(e) == 1 for e in ends(r).values())


def test_a_known_prefix_is_not_computed_again():
    engine, _ = engine_with(max_tokens=512)
    first, second = request(range(70), max_tokens=1), request([*range(64), 7, 8], max_tokens=1)
    engine.submit(first)
    finish(engine)
    engine.submit(second)
    finish(engine)
    assert engine.executor.steps == [70, 2] and tokens(second) == expected(second)


def test_a_prompt_that_is_known_whole_still_gives_logits():
    engine, _ = engine_with(max_tokens=512)
    for _ in range(2):
        r = request(range(64), max_tokens=1)
        engine.submit(r)
        finish(engine)
        assert tokens(r) == expected(r)
    assert engine.executor.steps == [64, 32]


def scores(r):
    (event,) = [e for e in r.events if isinstance(e, PromptEvent)]
    return event.scores


def assert_scored(r):
    """One PromptEvent, before the first token, with every token after the first and its own log-probability."""
    got = scores(r)
    assert [s.token for s in got] == [int(t) for t in r.prompt[1:]]
    for i, score in enumerate(got):
        row = logits_of(prefix_of(r.prompt[: i + 1])).astype(np.float64)
        logp = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert abs(score.logprob - logp[score.token]) < 1e-6
        assert [t for t, _ in score.top] == np.argsort(-logp, kind="stable")[: r.prompt_logprobs].tolist()


def test_prompt_scores_are_whole_even_when_the_prefix_is_known():
    engine, _ = engine_with(max_rows=8)
    prompt = [i % VOCABULARY for i in range(70)]
    engine.submit(request(prompt))
    finish(engine)
    r = request(prompt, prompt_logprobs=2)
    engine.submit(r)
    finish(engine)
    assert_scored(r)


def test_prompt_scores_survive_a_preemption_in_the_prompt():
    """Positions that were not scored yet must be, even if another request has left their blocks findable."""
    engine, _ = engine_with(blocks=8, max_rows=8)
    engine.submit(request([i % VOCABULARY for i in range(100)], max_tokens=1))
    finish(engine)
    r = request([i % VOCABULARY for i in range(100)], prompt_logprobs=1)
    engine.submit(r)
    engine.step()
    engine.scheduler.preempt(r.sequences[0])
    finish(engine)
    assert_scored(r)


def test_prompt_scores_are_told_once_whatever_is_preempted():
    engine, _ = engine_with(blocks=8)
    r = request(range(40), prompt_logprobs=1, max_tokens=10)
    engine.submit(r)
    while len(tokens(r)) < 3:
        engine.step()
    engine.scheduler.preempt(r.sequences[0])
    engine.scheduler.pool.forget_prefixes()
    finish(engine)
    assert_scored(r)
    assert tokens(r) == expected(r)


def test_forcing_collects_every_position_under_preemption(random):
    engine, _ = engine_with(blocks=8, max_rows=5, max_tokens=24)
    prompts = [random.integers(0, VOCABULARY, n).astype(np.int32) for n in (70, 33, 1, 64, 20)]

    def disturb(scheduler):
        scheduler.check_integrity()
        if scheduler.running and random.random() < 0.3:
            scheduler.preempt(scheduler.running[int(random.integers(len(scheduler.running)))])

    for prompt, got in zip(prompts, engine.collect(prompts, disturb), strict=True):
        assert np.array_equal(got, [logits_of(prefix_of(prompt[: i + 1])) for i in range(prompt.size)])
    assert engine.idle and engine.scheduler.pool.used == 0


class Any(RuleBasedStateMachine):
    """Requests come, are cancelled and expire in any order; after every step the pool is whole, and at the end all is told."""

    slots, reaches, blocks, context = 0, (0,), 5, None

    def __init__(self):
        super().__init__()
        self.engine, self.clock = engine_with(
            blocks=self.blocks, max_tokens=20, max_sequences=3, max_rows=6, max_waiting=6, slots=self.slots, reaches=self.reaches, context=self.context
        )  # fmt: skip
        self.requests = []
        self.given_up = set()

    @rule(
        length=st.integers(1, 90), same=st.booleans(), n=st.integers(1, 3), priority=st.integers(0, 1), timeout=st.sampled_from([None, None, 3.0]),
        max_tokens=st.integers(1, 50), temperature=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 5), stops=st.booleans(),
    )  # fmt: skip
    def submit(self, length, same, n, priority, timeout, max_tokens, temperature, seed, stops):
        prompt = [(i if same else i * 7 + seed) % VOCABULARY for i in range(length)]
        r = request(
            prompt,
            n=n,
            priority=priority,
            timeout_s=timeout,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop_token_ids=frozenset(range(3)) if stops else frozenset(),
        )
        try:
            self.engine.submit(r)
        except RequestError as error:
            refused = error
        else:
            refused = None
        if refused is not None:
            assert refused.status == 429 and not r.events
            return
        self.requests.append(r)

    @rule(steps=st.integers(1, 12))
    def step(self, steps):
        for _ in range(steps):
            self.engine.step()
            self.engine.scheduler.check_integrity()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data):
        i = data.draw(st.integers(0, len(self.requests) - 1))
        self.engine.cancel(self.requests[i])
        self.given_up.add(i)

    @rule(data=st.data())
    def preempt(self, data):
        running = self.engine.scheduler.running
        if running:
            self.engine.scheduler.preempt(running[data.draw(st.integers(0, len(running) - 1))])

    @rule(seconds=st.sampled_from([1.0, 4.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @invariant()
    def whole(self):
        self.engine.scheduler.check_integrity()
        assert len(self.engine.scheduler.running) <= 3
        for r in self.requests:
            for i, reasons in ends(r).items():
                assert len(reasons) <= 1, f"choice {i} ends {reasons}"

    def teardown(self):
        finish(self.engine)
        assert self.engine.scheduler.pool.used == 0
        for number, r in enumerate(self.requests):
            for i, reasons in ends(r).items():
                assert len(reasons) == 1, f"choice {i} of {r.n} ends {reasons}"
                wanted, got = expected(r, i, self.engine.scheduler.context), tokens(r, i)
                assert got == (wanted if reasons[0] in ("length", "stop") else wanted[: len(got)])
                assert reasons[0] != "cancelled" or number in self.given_up
                assert reasons[0] != "timeout" or r.timeout_s is not None
                last = [e for e in r.events if getattr(e, "index", None) == i][-1]
                assert isinstance(last, FinishEvent), "something is said after the end"


Any.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAny = Any.TestCase


class AnyWithStates(Any):
    """The same for a model with recurrent layers: each sequence's state is its own prefix's."""

    slots = 5


class AnyWithFewStates(Any):
    slots = 2


class AnyWithWindows(Any):
    """The same where some layers see everything and others have windows: each table of blocks is freed on its own."""

    reaches, blocks, context = (0, 40, 9), 13, 160


class AnyWithWindowsAndStates(AnyWithWindows):
    slots = 5


for _machine in (AnyWithStates, AnyWithFewStates, AnyWithWindows, AnyWithWindowsAndStates):
    _machine.TestCase.settings = Any.TestCase.settings
TestAnyWithStates, TestAnyWithFewStates = AnyWithStates.TestCase, AnyWithFewStates.TestCase
TestAnyWithWindows, TestAnyWithWindowsAndStates = AnyWithWindows.TestCase, AnyWithWindowsAndStates.TestCase


def test_tables_with_windows_hold_what_their_layers_see_and_no_more():
    engine, _ = engine_with(blocks=28, max_tokens=32, reaches=(0, 40, 40), context=640)
    r = request(range(10), max_tokens=600, ignore_eos=True)
    engine.submit(r)
    most = 0
    while not engine.idle:
        engine.step()
        engine.scheduler.check_integrity()
        most = max(most, engine.scheduler.pool.used)
    assert tokens(r) == expected(r)
    assert 20 + 2 * 2 <= most <= 20 + 2 * 3


def test_a_prefix_is_known_where_every_table_still_has_what_its_layers_see():
    """After a window has moved on, the blocks before it may be taken; the prefix that ends inside it still counts."""
    engine, _ = engine_with(blocks=40, max_tokens=512, reaches=(0, 40), context=640)
    prompt = [i % VOCABULARY for i in range(320)]
    for _ in range(2):
        r = request(prompt, max_tokens=1)
        engine.submit(r)
        finish(engine)
        assert tokens(r) == expected(r)
    assert engine.executor.steps == [320, 32]
    pool = engine.scheduler.pool
    names = [Sequence(np.array(prompt, np.int32), SamplingParams()).block_hash(i) for i in range(10)]
    assert pool.find_prefix(names[:9]) == 9
    for table, i, left in [(1, 8, 8), (1, 5, 8), (1, 7, 5), (0, 3, 3)]:  # what a prefix of 9 blocks loses with this block
        block = pool.find(names[i], table)
        pool._forget(block)
        assert pool.find_prefix(names[:9]) == left, (table, i)


def test_states_are_restored_from_the_last_block_of_a_shared_prompt():
    engine, _ = engine_with(blocks=16, max_tokens=512, slots=8)
    first, second = request(range(45)), request([*range(45), 7, 8])
    for r in (first, second):
        engine.submit(r)
        finish(engine)
        assert tokens(r) == expected(r)
    assert engine.executor.steps[:2] == [32, 13], "the prompt is cut where a snapshot can be used again"
    assert sum(engine.executor.steps) == 45 + 3 + 15 + 3
    assert engine.scheduler.states.used == 0


def test_a_conversation_goes_on_from_what_was_generated():
    engine, _ = engine_with(blocks=16, max_tokens=512, slots=8)
    first = request(range(20), max_tokens=50)
    engine.submit(first)
    finish(engine)
    before = sum(engine.executor.steps)
    second = request([*range(20), *tokens(first), 3], max_tokens=1)
    engine.submit(second)
    finish(engine)
    assert tokens(second) == expected(second)
    assert sum(engine.executor.steps) - before == 71 - 64


def test_a_snapshot_goes_with_its_blocks():
    engine, _ = engine_with(blocks=3, max_tokens=512, slots=4)
    for start in (0, 100, 200):
        r = request(range(start, start + 70), max_tokens=1)
        r.prompt %= VOCABULARY
        engine.submit(r)
        finish(engine)
    assert len(engine.scheduler.states._snapshots) <= 1
    engine.scheduler.check_integrity()


def test_fewer_slots_than_requests_only_make_them_wait():
    engine, _ = engine_with(blocks=32, max_tokens=512, slots=1)
    requests = [request(range(i, i + 40), n=2) for i in range(4)]
    for r in requests:
        engine.submit(r)
    finish(engine)
    for r in requests:
        assert [tokens(r, i) for i in range(2)] == [expected(r, i) for i in range(2)]


def test_a_long_prompt_leaves_room_for_those_that_generate():
    engine, _ = engine_with(64, max_tokens=64, max_sequences=16, max_rows=16, mixed_tokens=8)
    first = [request([i], max_tokens=40) for i in range(6)]
    for r in first[:1]:
        engine.submit(r)
    engine.step()
    late = request(range(100, 150))
    engine.submit(late)
    engine.step()
    assert engine.executor.steps[-1] == 8, "one generates: a step has up to mixed_tokens"
    for r in first[1:]:
        engine.submit(r)
    finish(engine)
    assert all(tokens(r) == expected(r) for r in (*first, late))


def test_a_prompt_doubles_the_rows_of_a_step_at_most():
    engine, _ = engine_with(64, max_tokens=64, max_sequences=16, max_rows=16, mixed_tokens=8)
    for i in range(10):
        engine.submit(request([i], max_tokens=40))
    engine.step()
    engine.submit(request(range(100, 150)))
    engine.step()
    assert engine.executor.steps[-1] == 20


def test_many_prompts_come_before_few_that_generate():
    engine, _ = engine_with(64, max_tokens=64, max_sequences=16, max_rows=16, mixed_tokens=8)
    engine.submit(request([1], max_tokens=40))
    engine.step()
    for i in range(3):
        engine.submit(request(range(100 * i, 100 * i + 40)))
    engine.step()
    assert engine.executor.steps[-1] == 64


def test_a_copy_does_not_wait_for_a_prompt_that_came_before_it():
    engine, _ = engine_with(64, max_tokens=64, max_sequences=16, max_rows=16, mixed_tokens=8)
    engine.submit(request(range(5), max_tokens=60))
    engine.step()
    two, late = request(range(10, 14), n=2, max_tokens=30, temperature=1.0, seed=3), request(range(100, 220))
    engine.submit(two)
    engine.submit(late)
    for _ in range(9):
        engine.step()
    assert len(tokens(two, 0)) == len(tokens(two, 1)) and not tokens(late)
    finish(engine)
    assert all(tokens(r, i) == expected(r, i) for r in (two, late) for i in range(r.n))
