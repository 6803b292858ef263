"""Sampling by the compiled kernels, against the same rules written in numpy on the same logits."""

from __future__ import annotations

import llmc
import numpy as np
import pytest
from llmc.errors import RequestError
from llmc.runtime.engine import FinishEvent, PromptEvent, Request, TokenEvent
from llmc.runtime.executors.cpu import Batch
from llmc.runtime.sampling import SamplingParams, SamplingRow

MASK = 2**64 - 1


def mix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def uniform(seed, counter):
    return (mix64(mix64(seed & MASK) ^ ((counter * 0xD1342543DE82EF95 + 1) & MASK)) >> 11) * 2.0**-53


def adjusted(logits, q):
    """Bias and penalties, in float32 as the kernel has them."""
    x = logits.astype(np.float32).copy()
    if q.bias_ids is not None:
        np.add.at(x, q.bias_ids, q.bias)
    prompt = q.prompt if q.prompt is not None else np.zeros(0, np.int32)
    output = q.output if q.output is not None else np.zeros(0, np.int32)
    seen = np.unique(np.concatenate([prompt, output]))
    x[seen] = np.where(x[seen] > 0, x[seen] / np.float32(q.repetition_penalty), x[seen] * np.float32(q.repetition_penalty))
    ids, counts = np.unique(output, return_counts=True)
    x[ids] -= np.float32(q.presence_penalty) + counts.astype(np.float32) * np.float32(q.frequency_penalty)
    return x


def distribution(logits, q):
    """Ids that can be drawn, in the order in which the draw walks them, and their probabilities."""
    x = adjusted(logits, q).astype(np.float64)
    filtered = (0 < q.top_k < x.size) or q.top_p < 1 or q.min_p > 0
    ids = np.lexsort((np.arange(x.size), -x)) if filtered else np.arange(x.size)
    if 0 < q.top_k < x.size:
        ids = ids[: q.top_k]
    p = np.exp((x[ids] - x.max()) / q.temperature)
    if q.top_p < 1:
        before = np.cumsum(p) - p
        keep = before < p.sum() * q.top_p
        ids, p = ids[keep], p[keep]
    if q.min_p > 0:
        keep = p >= q.min_p * p[0]
        ids, p = ids[keep], p[keep]
    return ids, p / p.sum()


def row(**settings):
    return SamplingRow(
        **{
            "row": 0,
            "temperature": 1.0,
            "top_p": 1.0,
            "min_p": 0.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": 0,
            "counter": 0,
            **settings,
        }
    )


@pytest.fixture(scope="module")
def loaded(checkpoint, artifact):
    with llmc.load(artifact(checkpoint("llama")), kv_cache="8MiB", threads=2, max_batch=8) as model:
        yield model


@pytest.fixture
def model(loaded):
    """The tiny llama with an engine of its own: what one test leaves behind is not the next one's."""
    loaded.engine = loaded.new_engine()
    return loaded


@pytest.fixture
def logits(model, random):
    """One row of a fresh random prompt's logits, left in the executor for `sample`."""
    ids = random.integers(3, 256, 9).astype(np.int32)
    model.executor.run(
        Batch(
            ids,
            np.arange(9, dtype=np.int32),
            np.array([0, 9], np.int32),
            np.zeros(1, np.int32),
            np.zeros((1, 1, 1), np.int32),
            np.array([8], np.int32),
        )
    )
    return model.executor.logits(1)[0].copy()


SETTINGS = [
    {}, {"temperature": 0.3}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 5}, {"top_k": 255}, {"top_k": 10_000}, {"top_p": 0.5}, {"top_p": 0.01}, {"top_p": 0.999}, {"min_p": 0.2}, {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.05, "temperature": 0.8},
    {"bias_ids": np.array([3, 4, 3], np.int32), "bias": np.array([5.0, -100.0, 2.0], np.float32)},
    {"prompt": np.array([5, 6, 6], np.int32), "output": np.array([7, 7, 8], np.int32), "repetition_penalty": 1.7},
    {"output": np.array([7, 7, 8], np.int32), "presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"prompt": np.array([9] * 3, np.int32), "output": np.array([1, 250], np.int32), "repetition_penalty": 0.5, "presence_penalty": -1.0, "top_p": 0.9, "bias_ids": np.array([1], np.int32), "bias": np.array([1.0], np.float32)},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()) or "plain")
def test_draws_are_those_of_numpy(settings, model, logits, random):
    """Draw by draw with the same generator; only draws within rounding of a boundary may differ, and those are few."""
    rows = [row(seed=int(random.integers(1 << 62)), counter=int(c), **settings) for c in random.integers(0, 1000, 300)]
    got = [d.token for d in model.executor.sample(rows)]
    ids, p = distribution(logits, rows[0])
    edges = np.cumsum(p)
    for q, token in zip(rows, got, strict=True):
        u = uniform(q.seed, q.counter)
        near = {int(ids[min(np.searchsorted(edges, v, side="right"), ids.size - 1)]) for v in (u - 1e-5, u, u + 1e-5)}
        assert token in near, (token, near)


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.get("temperature", 1.0) == 1.0], ids=str)
def test_greedy_is_the_largest_after_bias_and_penalties(settings, model, logits):
    q = row(**{**settings, "temperature": 0.0})
    assert model.executor.sample([q])[0].token == int(adjusted(logits, q).argmax())


def test_greedy_ties_take_the_lowest_id(model, logits):
    """All tokens but three are pushed down; the three are made equal."""
    ids = np.array([200, 17, 99], np.int32)
    bias = (np.float32(64.0) - logits[ids]).astype(np.float32)
    made = logits[ids] + bias
    chosen = model.executor.sample([row(temperature=0.0, bias_ids=ids, bias=bias), row(top_k=1, bias_ids=ids, bias=bias)])
    ties = ids[made == made.max()]
    assert [d.token for d in chosen] == [int(ties.min())] * 2


def test_top_k_of_one_is_greedy(model, logits, random):
    rows = [
        row(top_k=1, seed=int(s), temperature=float(t))
        for s, t in zip(random.integers(1 << 60, size=20), random.uniform(0.01, 5, 20), strict=True)
    ]
    assert {d.token for d in model.executor.sample(rows)} == {int(logits.argmax())}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-39, 1e-44])
def test_a_temperature_that_goes_to_zero_becomes_greedy(temperature, model, logits):
    rows = [row(temperature=temperature, seed=s, **more) for s in range(20) for more in ({}, {"top_p": 0.9})]
    assert {d.token for d in model.executor.sample(rows)} == {int(logits.argmax())}


def test_a_token_with_a_bias_of_minus_infinity_is_never_drawn(model, logits):
    banned = int(logits.argmax())
    q = {"bias_ids": np.array([banned], np.int32), "bias": np.array([-np.inf], np.float32)}
    assert banned not in {
        d.token for d in model.executor.sample([row(seed=s, **q) for s in range(300)] + [row(temperature=0.0, **q)])
    }


def test_log_probabilities_are_of_the_raw_logits(model, logits):
    exact = logits.astype(np.float64) - logits.max()
    exact -= np.log(np.exp(exact).sum())
    draws = model.executor.sample(
        [row(temperature=0.5, seed=3, bias_ids=np.array([5], np.int32), bias=np.array([9.0], np.float32)), row(temperature=0.0)],
        top=7,
        logprobs=True,
    )
    for draw in draws:
        assert abs(draw.logprob - exact[draw.token]) < 2e-6
        assert [t for t, _ in draw.top] == np.argsort(-logits, kind="stable")[:7].tolist()
        assert np.abs([p - exact[t] for t, p in draw.top]).max() < 2e-6
    assert model.executor.sample([row(temperature=0.0)])[0].top == []


def test_scores_of_given_tokens(model, random):
    ids = random.integers(3, 256, 20).astype(np.int32)
    everything = np.arange(20, dtype=np.int32)
    model.executor.run(
        Batch(ids, everything, np.array([0, 20], np.int32), np.zeros(1, np.int32), np.zeros((1, 1, 1), np.int32), everything)
    )
    rows, targets = model.executor.logits(20).astype(np.float64), random.integers(0, 256, 20).astype(np.int32)
    exact = rows - rows.max(-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    assert np.abs(model.executor.score(targets) - exact[np.arange(20), targets]).max() < 2e-6


def run(model, requests):
    for r in requests:
        model.engine.submit(r)
    while not model.engine.idle:
        model.engine.step()
        model.engine.scheduler.check_integrity()
    assert model.engine.scheduler.pool.used == 0
    return [{i: [e.token for e in r.events if isinstance(e, TokenEvent) and e.index == i] for i in range(r.n)} for r in requests]


def request(ids, n=1, prompt_logprobs=None, **params):
    events = []
    made = Request(np.array(ids, np.int32), SamplingParams(**params), events.append, n, prompt_logprobs=prompt_logprobs)
    made.events = events
    return made


def test_a_seed_gives_the_same_text_alone_and_among_others(model, random):
    def make(i, n):
        return request(
            np.random.default_rng(i).integers(3, 256, 5 + 17 * i),
            n=n,
            temperature=1.0,
            top_p=0.95,
            repetition_penalty=1.2,
            seed=1000 + i,
            max_tokens=40,
        )

    alone = [run(model, [make(i, 1)])[0] for i in range(5)]
    model.engine.scheduler.pool.forget_prefixes()
    together = run(
        model, [make(i, 3) for i in random.permutation(5).tolist()] + [request([7], temperature=2.0, seed=5, max_tokens=60)]
    )
    by_first = {tuple(t[0]): t for t in together}
    assert all(tuple(a[0]) in by_first for a in alone), "a text changed among others"
    assert all(len({tuple(t[i]) for i in range(3)}) == 3 for t in together[:5]), "choices of one request do not differ"


def test_penalties_follow_the_text_as_it_grows(model, random):
    """Greedy with penalties, token by token against numpy on teacher-forced logits."""
    prompt = random.integers(3, 256, 6).tolist()
    (got,) = run(
        model,
        [
            request(
                prompt,
                temperature=0.0,
                max_tokens=15,
                repetition_penalty=1.3,
                frequency_penalty=0.7,
                presence_penalty=0.4,
                logit_bias=((9, 1.5),),
            )
        ],
    )
    forced = model.logits([prompt + got[0]])[0]
    for i, token in enumerate(got[0]):
        q = row(
            temperature=0.0,
            prompt=np.array(prompt, np.int32),
            output=np.array(got[0][:i], np.int32),
            repetition_penalty=1.3,
            frequency_penalty=0.7,
            presence_penalty=0.4,
            bias_ids=np.array([9], np.int32),
            bias=np.array([1.5], np.float32),
        )
        assert token == int(adjusted(forced[len(prompt) - 1 + i], q).argmax())


def test_prompt_log_probabilities(model, random):
    prompt = random.integers(3, 256, 70).tolist()
    r = request(prompt, prompt_logprobs=2, temperature=0.0, max_tokens=1)
    run(model, [r])
    rows = model.logits([prompt])[0].astype(np.float64)
    exact = rows - rows.max(-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    (event,) = [e for e in r.events if isinstance(e, PromptEvent)]
    assert (
        np.abs([s.logprob - exact[i, prompt[i + 1]] for i, s in enumerate(event.scores)]).max() < 2e-6 and len(event.scores) == 69
    )


def test_generate_ends_at_length_and_gives_ids_without_a_tokenizer(model):
    out = model.generate([5, 6, 7], max_tokens=9, ignore_eos=True)
    assert out.text is None and len(out.token_ids) == 9 and out.finish_reason == "length" and out.prompt_tokens == 3
    assert out.token_ids == model.generate_batch([[8], [5, 6, 7]], max_tokens=9, ignore_eos=True)[1].token_ids
    events = list(model.stream([5, 6, 7], max_tokens=9, ignore_eos=True))
    assert [e.token for e in events[:-1]] == out.token_ids and isinstance(events[-1], FinishEvent)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings, model):
    with pytest.raises(RequestError):
        model.generate([5], **{"max_tokens": 2, **settings})


@pytest.mark.parametrize("prompt", [[], [-1], [256], [1.5], ["a"]], ids=str)
def test_impossible_prompts_are_refused(prompt, model):
    with pytest.raises(RequestError):
        model.generate(prompt, max_tokens=2)
    assert model.engine.idle


def test_text_without_a_tokenizer_is_refused(model):
    with pytest.raises(RequestError, match="no tokenizer"):
        model.generate("hello")
