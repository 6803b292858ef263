"""/v1/completions: what comes back is what the model computes, in OpenAI's shape."""

from __future__ import annotations

import numpy as np
import openai
import pytest
from server import tiny

PROMPT = "The keeper of the lighthouse"


def log_probabilities(model, ids):
    from llmc.conformance import log_softmax

    return log_softmax(model.logits([ids])[0].astype(np.float64))


def penalized(logits, prompt, output, *, repetition=1.0, presence=0.0, frequency=0.0):
    """The penalties as they are documented: repetition over prompt and output, the other two over the output alone."""
    out = logits.astype(np.float64).copy()
    for t in {*prompt, *output}:
        out[t] = out[t] / repetition if out[t] > 0 else out[t] * repetition
    for t in set(output):
        out[t] -= presence + frequency * output.count(t)
    return out


def test_greedy_equals_the_python_interface(idle, model):
    made = idle.openai.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=40, temperature=0, extra_body={"return_token_ids": True}
    )
    expected = model.generate(PROMPT, max_tokens=40)
    assert made.choices[0].text == expected.text
    assert made.choices[0].token_ids == expected.token_ids
    assert made.choices[0].finish_reason == "length"
    assert made.object == "text_completion"
    assert made.model == "tiny"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (
        expected.prompt_tokens,
        40,
        expected.prompt_tokens + 40,
    )


def test_max_tokens_defaults_to_16_and_the_model_name_may_be_left_out(idle):
    assert idle.post("/v1/completions", {"prompt": PROMPT, "temperature": 0})["usage"]["completion_tokens"] == 16


def test_token_ids_as_a_prompt_give_the_same(idle, model):
    ids = model.tokenizer.encode(PROMPT)
    text, numbers = idle.complete(PROMPT), idle.complete(ids)
    assert text["choices"] == numbers["choices"]
    assert numbers["usage"]["prompt_tokens"] == len(ids)


def test_several_prompts_keep_their_order(idle):
    prompts = ["One", "Der Fluss", "def f(a):", "1, 2, 3"]
    made = idle.complete(prompts, n=2)
    assert [c["index"] for c in made["choices"]] == list(range(8))
    for i, prompt in enumerate(prompts):
        alone = idle.complete(prompt)["choices"][0]["token_ids"]
        assert [c["token_ids"] for c in made["choices"][2 * i : 2 * i + 2]] == [alone, alone]
    assert made["usage"]["completion_tokens"] == 8 * 12
    ids = idle.complete([[5, 6, 7], [300, 20]])
    assert ids["choices"][1]["token_ids"] == idle.complete([300, 20])["choices"][0]["token_ids"]


def test_a_seed_makes_sampling_repeatable(idle):
    first, again, other = (idle.complete(temperature=1, seed=s, n=3, max_tokens=20) for s in (7, 7, 8))
    ids = [c["token_ids"] for c in first["choices"]]
    assert ids == [c["token_ids"] for c in again["choices"]]
    assert ids != [c["token_ids"] for c in other["choices"]]
    assert len({tuple(i) for i in ids}) == 3
    assert idle.complete(temperature=1, seed=7, max_tokens=20)["choices"][0]["token_ids"] == ids[0]
    assert idle.complete(temperature=1, seed=-7)["choices"][0]["token_ids"]


def test_without_a_seed_answers_differ(idle):
    made = {tuple(idle.complete(temperature=1)["choices"][0]["token_ids"]) for _ in range(4)}
    assert len(made) > 1


@pytest.mark.parametrize("n", [33, 128])
def test_more_choices_than_the_batch_holds(idle, n):
    made = idle.complete(n=n, max_tokens=3)
    assert [c["index"] for c in made["choices"]] == list(range(n))
    assert len({tuple(c["token_ids"]) for c in made["choices"]}) == 1


def test_top_k_1_and_a_tiny_top_p_are_greedy(idle):
    greedy = idle.complete()["choices"][0]["token_ids"]
    for fields in ({"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0}, {"min_p": 1.0}):
        assert idle.complete(temperature=1, seed=3, **fields)["choices"][0]["token_ids"] == greedy, fields


def test_stop_strings_end_the_text_before_them(idle, model):
    whole = model.generate(PROMPT, max_tokens=40)
    stop = whole.text[9:12]
    made = idle.complete(PROMPT, max_tokens=40, stop=stop)["choices"][0]
    assert made["text"] == whole.text[: whole.text.index(stop)]
    assert made["finish_reason"] == "stop"
    assert made["token_ids"] == whole.token_ids[: len(made["token_ids"])]
    assert idle.complete(PROMPT, max_tokens=40, stop=["\0never", stop])["choices"][0]["text"] == made["text"]
    assert idle.complete(PROMPT, max_tokens=40, stop=["\0never"])["choices"][0]["text"] == whole.text
    assert (
        "".join(
            c["choices"][0]["text"]
            for c in idle.chunks("/v1/completions", {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stop": stop})
        )
        == made["text"]
    )


def test_the_end_token_is_counted_but_not_shown(idle):
    made = idle.complete(logit_bias={"2": 100})
    assert made["choices"][0]["token_ids"] == [2]
    assert made["choices"][0]["text"] == ""
    assert made["choices"][0]["finish_reason"] == "stop"
    assert made["usage"]["completion_tokens"] == 1
    assert idle.complete(logit_bias={"2": 100}, ignore_eos=True)["choices"][0]["token_ids"] == [2] * 12


def test_stop_token_ids_end_an_answer(idle):
    ids = idle.complete()["choices"][0]["token_ids"]
    made = idle.complete(stop_token_ids=[ids[4]])["choices"][0]
    assert made["token_ids"] == ids[: ids.index(ids[4]) + 1]
    assert made["finish_reason"] == "stop"


def test_logit_bias_forces_and_forbids(idle):
    assert idle.complete(logit_bias={"77": 100})["choices"][0]["token_ids"] == [77] * 12
    greedy = idle.complete()["choices"][0]["token_ids"]
    assert greedy[0] not in idle.complete(logit_bias={str(greedy[0]): -100})["choices"][0]["token_ids"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("presence_penalty", 2.0), ("frequency_penalty", 1.5), ("frequency_penalty", -1.0), ("repetition_penalty", 1.8)],
)
def test_penalties_are_those_of_the_formula(idle, model, field, value):
    made = idle.complete(PROMPT, max_tokens=40, **{field: value})["choices"][0]["token_ids"]
    prompt = model.tokenizer.encode(PROMPT)
    rows = model.logits([prompt + made])[0]
    name = field.removesuffix("_penalty")
    for i, token in enumerate(made):
        score = penalized(rows[len(prompt) + i - 1], prompt, made[:i], **{name: value})
        assert score[token] >= score.max() - 1e-4, f"token {i}"
    assert made != idle.complete(PROMPT, max_tokens=40)["choices"][0]["token_ids"]


def test_logprobs_are_those_of_the_model(idle, model):
    made = idle.openai.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=10, temperature=0, logprobs=3, extra_body={"return_token_ids": True}
    ).choices[0]
    prompt = model.tokenizer.encode(PROMPT)
    rows = log_probabilities(model, prompt + made.token_ids)[len(prompt) - 1 : -1]
    got = made.logprobs
    assert len(got.tokens) == len(got.token_logprobs) == len(got.top_logprobs) == len(got.text_offset) == 10
    np.testing.assert_allclose(got.token_logprobs, [r[t] for r, t in zip(rows, made.token_ids, strict=True)], atol=1e-3)
    for row, top in zip(rows, got.top_logprobs, strict=True):
        assert max(top.values()) == pytest.approx(row.max(), abs=1e-3)
        assert 1 <= len(top) <= 3
    assert "logprobs" in made.model_dump() and idle.complete()["choices"][0]["logprobs"] is None


def test_logprobs_0_gives_the_tokens_own_alone(idle):
    got = idle.complete(logprobs=0)["choices"][0]["logprobs"]
    assert all(v <= 0 for v in got["token_logprobs"])
    assert all(not t for t in got["top_logprobs"])


def test_echo_repeats_the_prompt_and_scores_it(idle, model):
    made = idle.complete(PROMPT, echo=True, logprobs=2)["choices"][0]
    plain = idle.complete(PROMPT)["choices"][0]
    prompt = model.tokenizer.encode(PROMPT)
    assert made["text"] == PROMPT + plain["text"]
    assert made["token_ids"] == plain["token_ids"]
    scores = made["logprobs"]["token_logprobs"]
    assert scores[0] is None and made["logprobs"]["top_logprobs"][0] is None
    rows = log_probabilities(model, prompt + made["token_ids"])
    np.testing.assert_allclose(scores[1:], [rows[i][t] for i, t in enumerate((prompt + made["token_ids"])[1:])], atol=1e-3)
    alone = idle.complete(PROMPT, echo=True, logprobs=2, max_tokens=0)["choices"][0]
    assert alone["text"] == PROMPT
    np.testing.assert_allclose(alone["logprobs"]["token_logprobs"][1:], scores[1 : len(prompt)], atol=1e-6)
    assert alone["finish_reason"] == "length"


def test_scoring_a_prompt_as_evaluation_harnesses_do(idle):
    """They take the scores of all but the last token, which is generated, and a text for greedy if each is the best to the bit."""
    ids = idle.complete(PROMPT)["choices"][0]["token_ids"]
    context = idle.post("/tokenize", {"prompt": PROMPT})["tokens"]
    body = {"model": "tiny", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    prompts = [context + ids, [*context, *ids[:-1], (ids[-1] + 1) % 300], context + ids[:3]]
    for bias in ({}, {"logit_bias": {"2": 100}}):
        made = idle.post("/v1/completions", {**body, **bias, "prompt": prompts})["choices"]
        assert [c["finish_reason"] for c in made] == (["stop"] if bias else ["length"]) * 3
        for prompt, choice, greedy in zip(prompts, made, (True, False, True), strict=True):
            scores, best = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
            assert len(scores) == len(best) == len(prompt) + 1
            rest = range(len(context), len(prompt))
            assert all(scores[i] == max(best[i].values()) for i in rest) is greedy
            assert scores[len(context) : len(context) + 3] == made[0]["logprobs"]["token_logprobs"][len(context) :][:3]


def test_echo_of_a_long_prompt_is_scored_whole(idle, model):
    ids = model.tokenizer.encode(tiny.TEXT)[:900]
    scores = idle.complete(ids, echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]["token_logprobs"]
    rows = log_probabilities(model, ids)
    np.testing.assert_allclose(scores[1:], [rows[i][t] for i, t in enumerate(ids[1:])], atol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": 2},
        {"n": 3, "temperature": 1, "seed": 5},
        {"echo": True},
        {"echo": True, "logprobs": 1},
        {"stop": ["q", "e"]},
        {"max_tokens": 0, "echo": True},
        {"prompt": ["One", "Der Fluss"], "n": 2},
    ],
)
def test_a_stream_holds_what_the_whole_answer_holds(idle, fields):
    body = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0, "return_token_ids": True, **fields}
    whole = idle.post("/v1/completions", body)
    chunks = idle.chunks("/v1/completions", {**body, "stream_options": {"include_usage": True}})
    last = chunks.pop()
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert len({c["id"] for c in chunks}) == 1
    assert all(c["usage"] is None and c["object"] == "text_completion" for c in chunks)
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(m["text"] for m in mine) == choice["text"]
        assert [t for m in mine for t in m.get("token_ids", [])] == choice["token_ids"]
        assert [m["finish_reason"] for m in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        for key in ("tokens", "token_logprobs", "top_logprobs") if choice["logprobs"] else ():
            assert [x for m in mine if m["logprobs"] for x in m["logprobs"][key]] == choice["logprobs"][key], key


def test_a_stream_says_its_usage_all_along_where_asked(idle):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = idle.chunks("/v1/completions", {"prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "stream_options": options})
    *tokens, _, last = [c["usage"]["completion_tokens"] for c in chunks]
    assert tokens == sorted(tokens) and last == 5
    assert {c["usage"]["prompt_tokens"] for c in chunks} == {chunks[-1]["usage"]["prompt_tokens"]}


def test_a_streams_text_offsets_are_those_of_the_whole_answer(idle):
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 1}
    whole = idle.post("/v1/completions", body)["choices"][0]["logprobs"]["text_offset"]
    assert [
        x
        for c in idle.chunks("/v1/completions", body)
        if c["choices"][0]["logprobs"]
        for x in c["choices"][0]["logprobs"]["text_offset"]
    ] == whole


def test_a_stream_with_echo_scores_every_prompt(idle):
    body = {"prompt": [PROMPT, "Der Fluss trat", "1, 2"], "max_tokens": 2, "temperature": 0, "echo": True, "logprobs": 1}
    whole = idle.post("/v1/completions", body)
    chunks = idle.chunks("/v1/completions", body)
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert [x for m in mine if m["logprobs"] for x in m["logprobs"]["token_logprobs"]] == choice["logprobs"][
            "token_logprobs"
        ], f"prompt {choice['index']}"


def test_the_openai_client_streams(idle, model):
    pieces = list(
        idle.openai.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=30, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(p.choices[0].text for p in pieces if p.choices) == model.generate(PROMPT, max_tokens=30).text
    assert pieces[-1].usage.completion_tokens == 30


def test_characters_of_several_tokens_are_never_cut(idle, model):
    """Random halves of ü, one token each: the pieces of the stream make up what the tokens mean together."""
    first, second = (model.tokenizer.inner.token_to_id(c) for c in "Ã¼")
    body = {
        "prompt": PROMPT,
        "max_tokens": 40,
        "temperature": 1,
        "seed": 4,
        "return_token_ids": True,
        "logit_bias": {str(first): 100, str(second): 100},
    }
    pieces = [c["choices"][0] for c in idle.chunks("/v1/completions", body)]
    ids = [t for p in pieces for t in p["token_ids"]]
    assert {first, second} == set(ids)
    assert "".join(p["text"] for p in pieces) == model.tokenizer.decode(ids)
    assert "ü" in [p["text"] for p in pieces]


@pytest.mark.parametrize("tokens", [511, 512, 513, 600, 1100])
def test_prompts_longer_than_a_step(idle, model, tokens):
    """A step computes 512 tokens: all but the last step of a longer prompt has no row of logits. Each length begins otherwise, so that no prefix is found."""
    ids = [6 + tokens % 97, *([7 + i % 300 for i in range(tokens - 1)])]
    made = idle.complete(ids, max_tokens=2, logprobs=0)["choices"][0]
    assert made["token_ids"][0] == model.logits([ids])[0][-1].argmax()


def test_the_longest_prompt_and_answer(idle):
    made = idle.complete([5] * (tiny.CONTEXT - 4), max_tokens=100)
    assert made["usage"]["completion_tokens"] == 4
    assert made["choices"][0]["finish_reason"] == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        idle.openai.completions.create(model="tiny", prompt=[5] * tiny.CONTEXT, max_tokens=1)
    assert str(tiny.CONTEXT) in str(caught.value)
    assert caught.value.code == "context_length_exceeded"
