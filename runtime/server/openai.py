"""OpenAI's API: what a request may say, and what the answers look like."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import RequestError, nearest
from ..chat_template import render_chat
from ..sampling import Draw, SamplingParams
from ..tokenizer import ArtifactTokenizer

NO_EFFECT = ("user", "metadata", "store", "safety_identifier", "service_tier", "prompt_cache_key")
SHARED = ("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "stream", "stream_options", "stop", "stop_token_ids", "max_tokens", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "logprobs", "ignore_eos", "return_token_ids", "priority", "timeout", *NO_EFFECT)  # fmt: skip
COMPLETION = (*SHARED, "prompt", "echo", "best_of", "suffix")
CHAT = (
    *SHARED,
    "messages",
    "top_logprobs",
    "max_completion_tokens",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "modalities",
    "chat_template_kwargs",
)
MAX_TOP = 20
STREAM_OPTIONS = {"include_usage", "continuous_usage_stats", "include_obfuscation"}
MAX_CHOICES = 128
MAX_PROMPTS = 1024


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request: prompts as token ids, sampling, and how the answer is to look."""

    prompts: tuple[npt.NDArray[np.int32], ...]
    params: SamplingParams
    n: int
    stream: bool
    include_usage: bool
    running_usage: bool
    echo: bool
    chat: bool
    prompt_logprobs: int | None
    return_token_ids: bool
    priority: int
    timeout_s: float | None


class Reader:
    """Typed access to a request's fields; every complaint names the field."""

    def __init__(self, body: Mapping[str, Any], known: tuple[str, ...]) -> None:
        self._body = body
        for key in body:
            if key not in known:
                raise RequestError(f"unknown field {key!r}; {nearest(key, known)}", param=key)

    def has(self, name: str) -> bool:
        return self._body.get(name) is not None

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise RequestError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}", param=name)
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise RequestError(f"{name} must be an integer from {low} to {high}, not {value!r}", param=name)
        return value

    def flag(self, name: str) -> bool:
        value = self._body.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise RequestError(f"{name} must be true or false, not {value!r}", param=name)
        return value

    def raw(self, name: str) -> Any:
        return self._body.get(name)


def parse_completion(body: Mapping[str, Any], tokenizer: ArtifactTokenizer, vocabulary: int, context: int) -> Call:
    """Check a /v1/completions body; raises RequestError naming the field."""
    read = Reader(body, COMPLETION)
    if read.raw("suffix"):
        raise RequestError("suffix is not supported", param="suffix")
    n = read.integer("n", 1, 1, MAX_CHOICES) or 1
    best = read.integer("best_of", n, 1, MAX_CHOICES)
    if best != n:
        raise RequestError("best_of other than n is not supported", param="best_of")
    top = read.integer("logprobs", None, 0, MAX_TOP)
    echo = read.flag("echo")
    prompts = _prompts(read.raw("prompt"), tokenizer, vocabulary)
    limit = read.integer("max_tokens", 16, 0, 1 << 30)
    assert limit is not None
    if limit == 0 and not echo:
        raise RequestError("max_tokens 0 generates nothing: it is for echo", param="max_tokens")
    return _call(read, tokenizer, vocabulary, prompts, n, limit, top, echo=echo, chat=False)


def parse_chat(body: Mapping[str, Any], tokenizer: ArtifactTokenizer, vocabulary: int, context: int) -> Call:
    """Check a /v1/chat/completions body and render its conversation; raises RequestError naming the field."""
    read = Reader(body, CHAT)
    for name in ("tools", "functions"):
        if read.raw(name):
            raise RequestError(f"{name} is not supported", param=name)
    if read.raw("tool_choice") not in (None, "none", "auto"):
        raise RequestError("tool_choice is not supported", param="tool_choice")
    form = read.raw("response_format")
    if form is not None and (not isinstance(form, dict) or form.get("type") != "text"):
        raise RequestError("response_format other than text is not supported", param="response_format")
    if read.raw("modalities") not in (None, ["text"]):
        raise RequestError("modalities other than text are not supported", param="modalities")
    messages = _messages(read.raw("messages"))
    extra = read.raw("chat_template_kwargs")
    if extra is not None and not isinstance(extra, dict):
        raise RequestError("chat_template_kwargs must be an object", param="chat_template_kwargs")
    if not tokenizer.available:
        raise RequestError("this model has no tokenizer: use completions with token ids", param="messages")
    text = render_chat(tokenizer.chat_template, messages, tokenizer.special_tokens(), extra=extra)
    prompt = np.array(tokenizer.encode(text, special=False), np.int32)
    wanted = read.flag("logprobs")
    top = read.integer("top_logprobs", None, 0, MAX_TOP)
    if top is not None and not wanted:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    limit = read.integer(
        "max_completion_tokens", read.integer("max_tokens", max(1, context - int(prompt.size)), 1, 1 << 30), 1, 1 << 30
    )
    assert limit is not None
    n = read.integer("n", 1, 1, MAX_CHOICES) or 1
    return _call(read, tokenizer, vocabulary, (prompt,), n, limit, (top or 0) if wanted else None, echo=False, chat=True)


def _call(
    read: Reader,
    tokenizer: ArtifactTokenizer,
    vocabulary: int,
    prompts: tuple[npt.NDArray[np.int32], ...],
    n: int,
    limit: int,
    top: int | None,
    *,
    echo: bool,
    chat: bool,
) -> Call:
    defaults = tokenizer.generation

    def default(name: str, otherwise: float) -> float:
        value = defaults.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise

    stream_options = read.raw("stream_options")
    stream = read.flag("stream")
    if stream_options is not None and (
        not stream or not isinstance(stream_options, dict) or set(stream_options) - STREAM_OPTIONS
    ):
        raise RequestError(
            "stream_options takes include_usage and continuous_usage_stats, with stream: true", param="stream_options"
        )
    seed = read.integer("seed", None, -(1 << 63), (1 << 63) - 1)
    params = SamplingParams(
        temperature=read.number("temperature", default("temperature", 1.0), 0.0, 100.0),
        top_p=read.number("top_p", default("top_p", 1.0), 0.0, 1.0) or 1e-9,
        top_k=read.integer("top_k", int(default("top_k", 0)), -1, 1 << 30) or 0,
        min_p=read.number("min_p", default("min_p", 0.0), 0.0, 1.0),
        repetition_penalty=read.number("repetition_penalty", default("repetition_penalty", 1.0), 1e-3, 100.0),
        presence_penalty=read.number("presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=read.number("frequency_penalty", 0.0, -2.0, 2.0),
        logit_bias=_bias(read.raw("logit_bias"), vocabulary),
        seed=secrets.randbits(63) if seed is None else seed & ((1 << 64) - 1),
        max_tokens=limit,
        stop=_stop(read.raw("stop"), tokenizer),
        stop_token_ids=tokenizer.eos_ids | _ids(read.raw("stop_token_ids"), "stop_token_ids", vocabulary),
        ignore_eos=read.flag("ignore_eos"),
        logprobs=top,
    )
    timeout = read.number("timeout", 0.0, 0.0, 1e6) or None
    include_usage, running_usage = (
        bool((stream_options or {}).get(name)) for name in ("include_usage", "continuous_usage_stats")
    )
    return Call(
        prompts,
        params,
        n,
        stream,
        include_usage,
        include_usage and running_usage,
        echo,
        chat,
        top if echo and top is not None else None,
        read.flag("return_token_ids"),
        read.integer("priority", 0, -1000, 1000) or 0,
        timeout,
    )


def _prompts(raw: Any, tokenizer: ArtifactTokenizer, vocabulary: int) -> tuple[npt.NDArray[np.int32], ...]:
    if isinstance(raw, str):
        raw = [raw]
    if not isinstance(raw, list) or not raw:
        raise RequestError("prompt must be a string, a list of strings, token ids, or a list of those", param="prompt")
    if all(isinstance(i, int) and not isinstance(i, bool) for i in raw):
        raw = [raw]
    if len(raw) > MAX_PROMPTS:
        raise RequestError(f"{len(raw)} prompts are too many: {MAX_PROMPTS} at most", param="prompt")
    out = []
    for item in raw:
        if isinstance(item, str):
            out.append(np.array(tokenizer.encode(item), np.int32))
        elif isinstance(item, list) and item and all(isinstance(i, int) and not isinstance(i, bool) for i in item):
            if not all(0 <= i < vocabulary for i in item):
                raise RequestError(f"a token id is outside the vocabulary of {vocabulary}", param="prompt")
            out.append(np.array(item, np.int32))
        else:
            raise RequestError("prompt must be a string, a list of strings, token ids, or a list of those", param="prompt")
    return tuple(out)


def _messages(raw: Any) -> list[dict[str, Any]]:
    if not isinstance(raw, list) or not raw:
        raise RequestError("messages must be a list with at least one message", param="messages")
    out = []
    for i, message in enumerate(raw):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{i}] must be an object with a role", param=f"messages[{i}]")
        content = message.get("content")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
            if not all(isinstance(p, str) for p in parts):
                raise RequestError(f"messages[{i}]: only text content is supported", param=f"messages[{i}].content")
            content = "".join(str(p) for p in parts)
        elif not isinstance(content, str):
            raise RequestError(f"messages[{i}] needs a text content", param=f"messages[{i}].content")
        role = "system" if message["role"] == "developer" else message["role"]
        if role not in ("system", "user", "assistant", "tool"):
            raise RequestError(f"messages[{i}] has the unknown role {role!r}", param=f"messages[{i}].role")
        for name, value in message.items():
            if name not in MESSAGE_FIELDS and value not in (None, [], ""):
                raise RequestError(
                    f"messages[{i}] has the field {name!r}, which is not supported: {nearest(name, MESSAGE_FIELDS)}",
                    param=f"messages[{i}].{name}",
                )
        kept = {k: v for k, v in message.items() if k in MESSAGE_FIELDS}
        out.append({**kept, "role": role, "content": content})
    return out


MESSAGE_FIELDS = ("role", "content", "name", "tool_call_id", "reasoning", "reasoning_content")


def _stop(raw: Any, tokenizer: ArtifactTokenizer) -> tuple[str, ...]:
    if raw is None:
        return ()
    items = [raw] if isinstance(raw, str) else raw
    if not isinstance(items, list) or len(items) > 16 or not all(isinstance(s, str) and s for s in items):
        raise RequestError("stop must be a non-empty string or a list of up to 16 of them", param="stop")
    if items and not tokenizer.available:
        raise RequestError("this model has no tokenizer: stop strings cannot be found", param="stop")
    return tuple(items)


def _ids(raw: Any, name: str, vocabulary: int) -> frozenset[int]:
    if raw is None:
        return frozenset()
    if not isinstance(raw, list) or not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocabulary for i in raw):
        raise RequestError(f"{name} must be a list of token ids below {vocabulary}", param=name)
    return frozenset(raw)


def _bias(raw: Any, vocabulary: int) -> tuple[tuple[int, float], ...]:
    if raw is None:
        return ()
    if not isinstance(raw, dict):
        raise RequestError("logit_bias must map token ids to numbers", param="logit_bias")
    out = []
    for key, value in raw.items():
        valid = (
            str(key).isdecimal()
            and len(str(key)) <= 10
            and int(key) < vocabulary
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and -100 <= value <= 100
        )
        if not valid:
            raise RequestError(
                f"logit_bias: {key!r}: {value!r} is not a token id with a number from -100 to 100", param="logit_bias"
            )
        out.append((int(key), float(value)))
    return tuple(out)


# --- answers -----------------------------------------------------------------------------------------------------------


def chat_logprobs(draws: list[Draw], tokenizer: ArtifactTokenizer) -> dict[str, Any]:
    """choices[].logprobs of a chat completion."""

    def entry(token: int, value: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token_text(token),
            "logprob": max(value, -9999.0),
            "bytes": list(tokenizer.token_bytes(token)),
        }

    return {
        "content": [{**entry(d.token, d.logprob), "top_logprobs": [entry(t, p) for t, p in d.top]} for d in draws],
        "refusal": None,
    }


def completion_logprobs(draws: list[Draw | None], tokenizer: ArtifactTokenizer, first: int | None, start: int) -> dict[str, Any]:
    """choices[].logprobs of a completion; a None draw is the first echoed token, which nothing precedes.

    `start` is the offset, in characters, of the first token in the choice's text.
    """

    def text(token: int) -> str:
        return tokenizer.token_text(token) if tokenizer.available else f"token_id:{token}"

    ids = [d.token if d is not None else first or 0 for d in draws]
    offsets = list(itertools.accumulate((tokenizer.characters(i) for i in ids[:-1]), initial=start))
    return {
        "tokens": [text(i) for i in ids],
        "token_logprobs": [max(d.logprob, -9999.0) if d is not None else None for d in draws],
        "top_logprobs": [{text(t): max(p, -9999.0) for t, p in reversed(d.top)} if d is not None else None for d in draws],
        "text_offset": offsets,
    }
