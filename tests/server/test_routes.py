"""The small routes: ready line, models, health, metrics, tokenize, detokenize, and what is not there."""

from __future__ import annotations

import pytest
from server import tiny


def test_models_are_listed_and_fetched(server):
    listed = server.openai.models.list().data
    assert [m.id for m in listed] == ["tiny"]
    assert listed[0].object == "model"
    assert listed[0].max_model_len == tiny.CONTEXT
    assert server.openai.models.retrieve("tiny").id == "tiny"
    answer = server.http.get("/v1/models/other")
    assert answer.status_code == 404
    assert "'tiny'" in answer.json()["error"]["message"]


def test_health(server):
    answer = server.http.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok"}


def test_metrics_are_prometheus_text_and_count(idle):
    before = idle.metric("generated_tokens_total"), idle.metric("prompt_tokens_total")
    made = idle.complete(max_tokens=5)
    assert idle.metric("generated_tokens_total") == before[0] + 5
    assert idle.metric("prompt_tokens_total") == before[1] + made["usage"]["prompt_tokens"]
    text = idle.http.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    assert 'llmc_http_requests_total{path="/v1/completions",status="200"}' in text.text
    assert "llmc_time_to_first_token_seconds_bucket" in text.text
    assert "llmc_time_between_tokens_seconds_count" in text.text


def test_time_to_first_token_counts_each_choice_once(idle):
    from prometheus_client.parser import text_string_to_metric_families

    def count(name):
        return next(
            s.value
            for f in text_string_to_metric_families(idle.http.get("/metrics").text)
            for s in f.samples
            if s.name == f"llmc_{name}_seconds_count"
        )

    before = count("time_to_first_token"), count("time_between_tokens")
    idle.complete(max_tokens=7)
    assert (count("time_to_first_token"), count("time_between_tokens")) == (before[0] + 1, before[1] + 6)


@pytest.mark.parametrize("text", ["The keeper", "über die Brücke\n\t🙂", "", "<s>marked</s>"])
def test_tokenize_and_detokenize_are_inverse(server, model, text):
    plain = server.post("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert plain["tokens"] == model.tokenizer.encode(text, special=False)
    assert plain["count"] == len(plain["tokens"])
    assert server.post("/detokenize", {"tokens": plain["tokens"]})["prompt"] == text
    assert server.post("/tokenize", {"prompt": text})["tokens"] == [1, *plain["tokens"]]


@pytest.mark.parametrize("body", [{}, {"prompt": 3}, {"prompt": None}, {"prompt": ["a"]}, [], "x"])
def test_tokenize_refuses_what_is_no_text(server, body):
    assert server.http.post("/tokenize", json=body).status_code == 400


@pytest.mark.parametrize("tokens", [None, "a", [-1], [tiny.VOCAB], [1.5], [True], [10**30], {"a": 1}])
def test_detokenize_refuses_what_are_no_ids(server, tokens):
    answer = server.http.post("/detokenize", json={"tokens": tokens})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_what_is_not_there_is_an_error_in_openais_shape(server, method, path, status):
    answer = server.http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_page_at_the_root_is_html(server):
    answer = server.http.get("/")
    assert answer.status_code == 200
    assert "<html" in answer.text.lower()
