"""/v1/chat/completions."""

from __future__ import annotations

import numpy as np
import pytest

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who counts ships?"}]


def prompt_ids(model, messages):
    from llmc.runtime.chat_template import render_chat

    return model.tokenizer.encode(
        render_chat(model.tokenizer.chat_template, messages, model.tokenizer.special_tokens()), special=False
    )


def test_the_template_is_applied_and_there_is_one_bos(idle, model):
    ids = prompt_ids(model, QUESTION)
    assert ids.count(1) == 1 and ids[0] == 1
    made = idle.openai.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=20, temperature=0, extra_body={"return_token_ids": True}
    )
    expected = model.generate(ids, max_tokens=20)
    assert made.choices[0].message.content == expected.text
    assert made.choices[0].message.role == "assistant"
    assert made.choices[0].token_ids == expected.token_ids
    assert made.usage.prompt_tokens == len(ids)
    assert made.object == "chat.completion"


def test_a_stream_holds_what_the_whole_answer_holds(idle):
    body = {
        "messages": QUESTION,
        "max_tokens": 20,
        "temperature": 1,
        "seed": 3,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
    }
    whole = idle.post("/v1/chat/completions", body)
    chunks = idle.chunks("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert chunks.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(m["delta"].get("content") or "" for m in mine) == choice["message"]["content"]
        assert [t for m in mine for t in m.get("token_ids", [])] == choice["token_ids"]
        assert [e for m in mine if m["logprobs"] for e in m["logprobs"]["content"]] == choice["logprobs"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


def test_the_openai_client_streams(idle):
    whole = idle.openai.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=20, temperature=0)
    pieces = list(idle.openai.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=20, temperature=0, stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole.choices[0].message.content


def test_logprobs_are_those_of_the_model(idle, model):
    from llmc.conformance import log_softmax

    made = idle.openai.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=4,
        extra_body={"return_token_ids": True},
    ).choices[0]
    ids = prompt_ids(model, QUESTION)
    rows = log_softmax(model.logits([ids + made.token_ids])[0].astype(np.float64))[len(ids) - 1 : -1]
    for row, token, entry in zip(rows, made.token_ids, made.logprobs.content, strict=True):
        assert entry.logprob == pytest.approx(row[token], abs=1e-3)
        assert entry.token == model.tokenizer.token_text(token)
        np.testing.assert_allclose([t.logprob for t in entry.top_logprobs], np.sort(row)[::-1][:4], atol=1e-3)


def test_the_bytes_of_the_tokens_make_up_the_text(idle, model):
    """A character may take several tokens: `bytes` is what lets a client put them together."""
    first, second = (model.tokenizer.inner.token_to_id(c) for c in "Ã¼")
    entries = []
    for token in (first, second):
        made = idle.chat(max_tokens=1, logit_bias={str(token): 100}, logprobs=True)["choices"][0]
        entries += made["logprobs"]["content"]
    assert bytes(b for e in entries for b in e["bytes"]).decode() == "ü"


def test_max_completion_tokens_goes_before_max_tokens(idle):
    assert idle.chat(max_completion_tokens=3, max_tokens=9)["usage"]["completion_tokens"] == 3


def test_content_may_be_a_list_of_text_parts(idle):
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "counts ships?"}]
    listed = idle.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": parts}], "max_tokens": 6, "temperature": 0}
    )
    assert listed["choices"][0]["message"] == idle.chat(max_tokens=6)["choices"][0]["message"]


def test_a_developer_message_is_a_system_message(idle):
    made = [
        idle.post(
            "/v1/chat/completions",
            {"messages": [{"role": role, "content": "Be brief."}, QUESTION[1]], "max_tokens": 6, "temperature": 0},
        )["choices"]
        for role in ("developer", "system")
    ]
    assert made[0] == made[1]


def test_stop_and_the_end_token(idle):
    assert idle.chat(logit_bias={"2": 100})["choices"][0]["message"]["content"] == ""
    text = idle.chat(max_tokens=30)["choices"][0]["message"]["content"]
    made = idle.chat(max_tokens=30, stop=text[6:9])["choices"][0]
    assert made["message"]["content"] == text[: text.index(text[6:9])]
    assert made["finish_reason"] == "stop"


def test_a_refusal_of_the_template_is_a_400(idle):
    answer = idle.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "refuse me"}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    assert "I refuse" in answer.json()["error"]["message"]
