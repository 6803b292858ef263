"""What the server refuses, with which status, and that each refusal names the field."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from server import tiny

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
NUMBERS = ("x", True, [], {}, [1])
BAD = [
    *(("temperature", v) for v in (*NUMBERS, -0.1, 101)),
    *(("top_p", v) for v in (*NUMBERS, -0.1, 1.1)),
    *(("top_k", v) for v in (*NUMBERS, 1.5, -2)),
    *(("min_p", v) for v in (*NUMBERS, 2)),
    *(("repetition_penalty", v) for v in (*NUMBERS, 0)),
    *(("presence_penalty", v) for v in (*NUMBERS, 2.1, -3)),
    *(("frequency_penalty", v) for v in (*NUMBERS, 2.1, -3)),
    *(("n", v) for v in (*NUMBERS, 0, -1, 1.5, 129)),
    *(("seed", v) for v in (*NUMBERS, 1.5, 1 << 70)),
    *(("stream", v) for v in ("yes", 1, [])),
    *(("stream_options", v) for v in ({"include_usage": True}, 1, "x")),
    *(("stop", v) for v in (1, "", [""], [1], ["a"] * 17, {"a": 1})),
    *(("stop_token_ids", v) for v in (1, ["a"], [-1], [tiny.VOCAB], [True])),
    *(("max_tokens", v) for v in (*NUMBERS, -1, 1.5, 1 << 40)),
    *(
        ("logit_bias", v)
        for v in (
            1,
            "x",
            [],
            {"a": 1},
            {"-1": 1},
            {str(tiny.VOCAB): 1},
            {"5": "x"},
            {"5": 101},
            {"5": True},
            {"5": None},
            {"²": 1},
            {"9" * 5000: 1},
        )
    ),
    *(("ignore_eos", v) for v in ("x", 1)),
    *(("return_token_ids", v) for v in ("x", 1)),
    *(("priority", v) for v in ("x", 1.5, 1 << 40)),
    *(("timeout", v) for v in ("x", -1, True)),
]
BAD_COMPLETION = [
    *(("prompt", v) for v in (None, 1, True, {}, [], [[]], [None], [1.5], [True], ["a", 1], [1, "a"], [-1], [tiny.VOCAB], [[1], [tiny.VOCAB]], [1 << 40], ["a"] * 1025, "")),
    *(("logprobs", v) for v in (True, "x", -1, 21)),
    *(("echo", v) for v in ("x", 1)),
    ("best_of", 3), ("suffix", "x"), ("max_tokens", 0),
]  # fmt: skip
BAD_CHAT = [
    *(("messages", v) for v in (None, 1, "x", [], {}, [1], [{}], [{"role": "user"}], [{"role": 1, "content": "x"}], [{"role": "king", "content": "x"}], [{"role": "user", "content": 1}], [{"role": "user", "content": [1]}])),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]),
    *(("logprobs", v) for v in ("x", 1)),
    ("top_logprobs", 3), ("max_completion_tokens", -1), ("max_completion_tokens", "x"), ("max_tokens", 0),
    ("tools", [{"type": "function"}]), ("functions", [{}]), ("tool_choice", "required"), ("response_format", {"type": "json_object"}), ("modalities", ["audio"]), ("chat_template_kwargs", 1),
]  # fmt: skip


def refusal(server, path, body):
    answer = server.http.post(
        path, content=body if isinstance(body, bytes) else json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, f"{answer.status_code} {answer.text[:300]}"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    return error


def id_of(value):
    return str(value)[:40]


@pytest.mark.parametrize(("field", "value"), BAD, ids=id_of)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_wrong_value_is_refused_by_name(server, path, field, value):
    body = {"prompt": "x", "max_tokens": 1} if path == COMPLETIONS else {"messages": MESSAGES, "max_tokens": 1}
    error = refusal(server, path, {**body, field: value})
    assert (error["param"] or "").startswith(field)
    assert field in error["message"]


@pytest.mark.parametrize(("field", "value"), BAD_COMPLETION, ids=id_of)
def test_a_wrong_completion_is_refused_by_name(server, field, value):
    assert (
        refusal(server, COMPLETIONS, {"prompt": "x", "max_tokens": 1, field: value} if value != "" else {"prompt": []})["param"]
        == field
    )


@pytest.mark.parametrize(("field", "value"), BAD_CHAT, ids=id_of)
def test_a_wrong_conversation_is_refused_by_name(server, field, value):
    assert refusal(server, CHAT, {"messages": MESSAGES, field: value})["param"].startswith(field)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_null_means_not_given(server, path):
    fields = dict.fromkeys(
        [
            "temperature",
            "top_p",
            "n",
            "seed",
            "stream",
            "stream_options",
            "stop",
            "max_tokens",
            "logit_bias",
            "presence_penalty",
            "frequency_penalty",
            "logprobs",
            "user",
        ]
    )
    body = {"prompt": "x"} if path == COMPLETIONS else {"messages": MESSAGES}
    limit = {"max_tokens": 2} if path == CHAT else {}
    assert server.http.post(path, json={**body, **fields, **limit}).status_code == 200


@pytest.mark.parametrize(
    ("field", "nearest"), [("temprature", "temperature"), ("max_token", "max_tokens"), ("zzzz", ""), ("best_off", "best_of")]
)
def test_an_unknown_field_is_named_with_the_nearest(server, field, nearest):
    error = refusal(server, COMPLETIONS, {"prompt": "x", field: 1})
    assert error["param"] == field
    assert field in error["message"]
    assert nearest in error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_fields_without_effect_are_accepted(server, path):
    body = {"prompt": "x", "max_tokens": 1} if path == COMPLETIONS else {"messages": MESSAGES, "max_tokens": 1}
    assert server.http.post(path, json={**body, "user": "me", "metadata": {"a": "b"}, "store": True}).status_code == 200


def test_another_model_is_404(server):
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.completions.create(model="gpt-5", prompt="x")
    assert caught.value.code == "model_not_found"
    assert server.http.post(CHAT, json={"model": {"a": 1}, "messages": MESSAGES}).status_code in (400, 404)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nope", b'{"prompt": }', b"\xff\xfe", b"[" * 100000, b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}"]
)
def test_a_body_that_is_no_json_is_400(server, body):
    assert "JSON" in refusal(server, COMPLETIONS, body)["message"]


@pytest.mark.parametrize("body", [[], 1, "x", None, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
def test_a_body_that_is_no_object_is_400(server, path, body):
    refusal(server, path, body)


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_are_none_are_400(server, value):
    assert refusal(server, COMPLETIONS, b'{"prompt": "x", "temperature": ' + value + b"}")["param"] == "temperature"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, b'{"prompt": "\\ud800", "max_tokens": 1}'),
        (COMPLETIONS, b'{"prompt": ["a", "b\\udfff"], "max_tokens": 1}'),
        (COMPLETIONS, b'{"prompt": "x", "max_tokens": 1, "\\ud800": 1}'),
        (COMPLETIONS, b'{"prompt": "x", "max_tokens": 1, "logit_bias": {"\\ud800": 1}}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}'),
        (CHAT, b'{"messages": [{"role": "\\ud800", "content": "x"}], "max_tokens": 1}'),
        ("/tokenize", b'{"prompt": "\\ud800"}'),
    ],
)
def test_half_a_surrogate_pair_is_400(server, path, body):
    refusal(server, path, body)


def test_half_a_surrogate_pair_as_the_model_is_400(server):
    assert server.http.post(COMPLETIONS, content=b'{"model": "\\ud800", "prompt": "x"}').status_code == 400
    answer = server.http.post(COMPLETIONS, content=b'{"prompt": "x", "max_tokens": 1, "stop": "\\ud800"}')
    assert answer.status_code in (200, 400)


def test_a_huge_body_is_413(server):
    answer = server.http.post(COMPLETIONS, content=b'{"prompt": "' + b"a" * (32 << 20) + b'"}')
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_too_long_a_prompt_is_400_with_the_limit(server, path, stream):
    body = {"prompt": "ab " * 5000} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "ab " * 5000}]}
    error = refusal(server, path, {**body, "stream": stream})
    assert str(tiny.CONTEXT) in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_without_a_tokenizer_there_are_ids_alone(serve):
    with serve(tiny.without_tokenizer()) as running:
        made = running.complete([5, 6, 7], max_tokens=4, logprobs=1)["choices"][0]
        assert made["text"] is None
        assert len(made["token_ids"]) == 4
        assert all(
            c["choices"][0]["text"] is None
            for c in running.chunks(COMPLETIONS, {"prompt": [5, 6], "max_tokens": 3, "echo": True})
        )
        for path, body in (
            (COMPLETIONS, {"prompt": "x"}),
            (COMPLETIONS, {"prompt": [5], "stop": "x"}),
            (CHAT, {"messages": MESSAGES}),
            ("/tokenize", {"prompt": "x"}),
            ("/detokenize", {"tokens": [5]}),
        ):
            assert "tokenizer" in refusal(running, path, body)["message"]


def test_a_token_that_the_model_does_not_have_is_400(serve):
    """The tokenizer may know more tokens than the model has rows: text that gives one must not reach the kernels."""
    with serve(tiny.wide_tokenizer()) as running:
        ids = running.post("/tokenize", {"prompt": "<|outside|>"})["tokens"]
        assert max(ids) == tiny.VOCAB
        refusal(running, COMPLETIONS, {"prompt": "a<|outside|>b", "max_tokens": 2})
        refusal(running, CHAT, {"messages": [{"role": "user", "content": "a<|outside|>b"}], "max_tokens": 2})
        assert running.complete()["choices"][0]["token_ids"]


@pytest.mark.parametrize("by_environment", [False, True])
def test_the_api_key(serve, by_environment):
    args, environment = ([], {"LLMC_API_KEY": "s3cret"}) if by_environment else (["--api-key", "s3cret"], {})
    with serve(tiny.artifact(), *args, key="s3cret", environment=environment) as running:
        assert [m.id for m in running.openai.models.list()] == ["tiny"]
        assert running.complete(max_tokens=1)
        assert httpx.get(f"{running.url}/health").status_code == 200
        for key in (None, "Bearer wrong", "Bearer", "Bearer s3cre", "Bearer s3cretx", "Basic s3cret", "Bearer \u00e9"):
            headers = {"Authorization": key.encode()} if key is not None else {}
            for method, path in (
                ("GET", "/v1/models"),
                ("POST", COMPLETIONS),
                ("GET", "/metrics"),
                ("POST", "/tokenize"),
                ("GET", "/nowhere"),
            ):
                answer = httpx.request(method, running.url + path, headers=headers)
                assert answer.status_code == 401, (key, path)
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "s3cret" not in answer.text
        if by_environment:
            return
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="nope", max_retries=0).models.list()
