"""The HTTP application: OpenAI's routes over an engine thread."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import LlmcError, RequestError, nearest
from ..api import Model
from ..engine import Event, FinishEvent, PromptEvent, Request, TokenEvent
from ..engine_thread import Delivery, EngineThread
from ..sampling import Draw
from .errors import error_body, error_response
from .metrics import Metrics
from .openai import Call, chat_logprobs, completion_logprobs, parse_chat, parse_completion

BODY_LIMIT = 32 << 20


@dataclass
class _Answer:
    """One choice as it grows."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    prompt_scores: list[Draw] = field(default_factory=list)
    offset: int | None = None
    reason: str | None = None
    failure: str = ""


class Server:
    """Owns the engine thread and the application state. `draining` refuses new work."""

    def __init__(self, model: Model, name: str, api_key: str = "") -> None:
        self.model = model
        self.name = name
        self.created = int(time.time())
        self.metrics = Metrics(model.engine)
        self.draining = False
        self.active = 0
        self._api_key = api_key.encode()
        self._thread = EngineThread(model.engine, self._deliver)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.app: ASGIApp = self._application()

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine; called once the event loop runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        self._thread.stop()

    def _deliver(self, events: Delivery) -> None:
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop may close between the two lines: nobody listens any more
                self._loop.call_soon_threadsafe(_dispatch, events)

    def _application(self) -> ASGIApp:
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/v1/completions", self._endpoint(parse_completion), methods=["POST"]),
            Route("/v1/chat/completions", self._endpoint(parse_chat), methods=["POST"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
        ]
        app = Starlette(routes=routes, exception_handlers={404: _not_found, 405: _wrong_method, 500: _failed})
        return self._guard(app)

    def _guard(self, app: ASGIApp) -> ASGIApp:
        """The API key, for every path but the page and /health; compared in constant time."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = [0]

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status[0] = message["status"]
                await send(message)

            if self._api_key and scope["path"] not in OPEN_PATHS and not self._authorized(scope):
                body = error_body("the API key is missing or wrong", "authentication_error", code="invalid_api_key")
                await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, watched)
            else:
                await app(scope, receive, watched)
            path = scope["path"]
            known = path if path in KNOWN_PATHS else "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
            self.metrics.http.labels(known, str(status[0])).inc()

        return guarded

    def _authorized(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given.removeprefix(b"Bearer "), self._api_key)

    # --- small routes -----------------------------------------------------------------------------------------------------

    async def _page(self, request: HttpRequest) -> Response:
        return HTMLResponse((Path(__file__).parent / "chat.html").read_text("utf-8"))

    async def _health(self, request: HttpRequest) -> Response:
        if self._thread.failure is not None:
            return JSONResponse({"status": "failed"}, 500)
        return JSONResponse({"status": "draining" if self.draining else "ok"}, 503 if self.draining else 200)

    async def _metrics(self, request: HttpRequest) -> Response:
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "llmc",
            "max_model_len": self.model.config.context,
        }

    async def _models(self, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _one_model(self, request: HttpRequest) -> Response:
        name = request.path_params["name"]
        return JSONResponse(self._card()) if name == self.name else error_response(self._wrong_model(name))

    def _wrong_model(self, name: object) -> RequestError:
        return RequestError(
            f"the model {name!r} does not exist here; this server has {self.name!r}",
            param="model",
            status=404,
            code="model_not_found",
        )

    def _check_model(self, body: dict[str, Any]) -> None:
        wanted = body.get("model")
        if wanted is not None and wanted != self.name:
            raise self._wrong_model(wanted)

    def _fields(self, body: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
        """The body of a request with these fields and `model`; raises RequestError for any other."""
        self._check_model(body)
        for name in body:
            if name not in (*known, "model"):
                raise RequestError(f"the field {name!r} is not known: {nearest(name, known)}", param=name)
        return body

    async def _tokenize(self, request: HttpRequest) -> Response:
        try:
            body = self._fields(await _body(request), ("prompt", "content", "add_special_tokens"))
            text = body.get("prompt", body.get("content"))
            if not isinstance(text, str):
                raise RequestError("prompt must be a string", param="prompt")
            special = body.get("add_special_tokens", True)
            ids = self.model.tokenizer.encode(text, special=bool(special))
        except RequestError as error:
            return error_response(error)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.model.config.context})

    async def _detokenize(self, request: HttpRequest) -> Response:
        try:
            body = self._fields(await _body(request), ("tokens",))
            ids = body.get("tokens")
            vocabulary = self.model.executor.vocabulary
            if not isinstance(ids, list) or not all(
                isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocabulary for i in ids
            ):
                raise RequestError(f"tokens must be a list of token ids below {vocabulary}", param="tokens")
            text = self.model.tokenizer.decode(ids, skip_special=False)
        except RequestError as error:
            return error_response(error)
        return JSONResponse({"prompt": text})

    # --- completions --------------------------------------------------------------------------------------------------------

    def _endpoint(self, parse: Callable[..., Call]) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def handle(http: HttpRequest) -> Response:
            try:
                if self.draining:
                    raise RequestError("the server is shutting down", status=503, kind="server_error", code="shutting_down")
                body = await _body(http)
                self._check_model(body)
                call = parse(body, self.model.tokenizer, self.model.executor.vocabulary, self.model.config.context)
                self._check_prompts(call)
                run = _Run(self, call)
            except RequestError as error:
                return error_response(error)
            if call.stream:
                return await run.stream()
            return await run.whole(http)

        return handle

    def _check_prompts(self, call: Call) -> None:
        limit = self.model.config.context
        param = "messages" if call.chat else "prompt"
        for prompt in call.prompts:
            if prompt.size == 0:
                raise RequestError("the prompt is empty", param=param)
            if int(prompt.max()) >= self.model.executor.vocabulary:
                raise RequestError(
                    f"the prompt has token {prompt.max()}, and the model knows {self.model.executor.vocabulary} tokens",
                    param=param,
                )
            if prompt.size + (call.params.max_tokens > 0) > limit:
                raise RequestError(
                    f"the prompt has {prompt.size} tokens; this model serves {limit} positions, the answer included",
                    param=param,
                    code="context_length_exceeded",
                )


OPEN_PATHS = ("/", "/health")  # the page asks for the key itself
KNOWN_PATHS = ("/", "/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")


def _dispatch(events: Delivery) -> None:
    for listener, event in events:
        listener(event)


class _Run:
    """One HTTP request on the engine: its prompts, its choices, and the queue on which their events arrive."""

    def __init__(self, server: Server, call: Call) -> None:
        self._server = server
        self._call = call
        self._id = ("chatcmpl-" if call.chat else "cmpl-") + uuid.uuid4().hex
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._answers: dict[int, _Answer] = {}
        self._requests: list[Request] = []
        self._open = 0

    def _submit(self) -> None:
        server, call = self._server, self._call
        server.active += 1
        for p, prompt in enumerate(call.prompts):
            base = p * call.n
            for i in range(call.n):
                self._answers[base + i] = _Answer(base + i)
            request = Request(
                prompt,
                call.params,
                partial(self._hear, base),
                call.n,
                call.priority,
                call.timeout_s,
                call.prompt_logprobs,
                lambda: server.model.tokenizer.detokenizer(call.params.stop),
            )
            self._requests.append(request)
            self._open += call.n
            server._thread.submit(request)

    def _hear(self, base: int, event: Event) -> None:
        self._queue.put_nowait((base, event))

    def _leave(self) -> None:
        self._server.active -= 1
        for request in self._requests:
            self._server._thread.cancel(request)

    async def _events(self) -> AsyncIterator[tuple[_Answer, Event]]:
        """Events with their answers brought up to date, until every choice has ended."""
        while self._open:
            base, event = await self._queue.get()
            if isinstance(event, PromptEvent):
                for i in range(self._call.n):
                    self._answers[base + i].prompt_scores = event.scores
                continue
            answer = self._answers[base + event.index]
            answer.text += event.text or ""
            if isinstance(event, TokenEvent):
                answer.tokens.append(event.token)
                answer.draws.append(event.draw)
            elif isinstance(event, FinishEvent):
                answer.reason, answer.failure = event.reason, event.message
                self._open -= 1
            yield answer, event

    # --- whole answers ------------------------------------------------------------------------------------------------------

    async def whole(self, http: HttpRequest) -> Response:
        gone = asyncio.ensure_future(_disconnected(http))
        self._submit()
        work = asyncio.ensure_future(self._drain())
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            work.result()
        finally:
            gone.cancel()
            work.cancel()
            self._leave()
        failed = next((a for a in self._answers.values() if _failure(a) is not None), None)
        if failed is not None:
            error = _failure(failed)
            assert error is not None
            return error_response(error)
        choices = [self._choice(a) for a in self._answers.values()]
        return JSONResponse({**self._envelope(chunk=False), "choices": choices, "usage": self._usage()})

    async def _drain(self) -> None:
        async for _ in self._events():
            pass

    def _choice(self, answer: _Answer) -> dict[str, Any]:
        call, tokenizer = self._call, self._server.model.tokenizer
        choice: dict[str, Any] = {"index": answer.index}
        text = answer.text if tokenizer.available else None
        if call.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            choice["logprobs"] = chat_logprobs(answer.draws, tokenizer) if call.params.logprobs is not None else None
        else:
            prompt = call.prompts[answer.index // call.n]
            echoed = tokenizer.decode(prompt.tolist()) if call.echo and tokenizer.available else ""
            choice["text"] = echoed + text if text is not None else None
            choice["logprobs"] = None
            if call.params.logprobs is not None:
                draws: list[Draw | None] = [None, *answer.prompt_scores] if call.echo else []
                choice["logprobs"] = completion_logprobs([*draws, *answer.draws], tokenizer, int(prompt[0]), 0)
        choice["finish_reason"] = answer.reason
        if call.return_token_ids:
            choice["token_ids"] = answer.tokens
        return choice

    def _envelope(self, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self._call.chat else "text_completion"
        return {
            "id": self._id,
            "object": kind,
            "created": int(time.time()),
            "model": self._server.name,
            "system_fingerprint": self._server.model.artifact.manifest["source"]["sha256"][:12],
        }

    def _usage(self) -> dict[str, Any]:
        prompt = sum(int(p.size) for p in self._call.prompts)
        generated = sum(len(a.tokens) for a in self._answers.values())
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}

    # --- streams --------------------------------------------------------------------------------------------------------------

    async def stream(self) -> Response:
        """The first event is awaited before the headers are sent, so that a refusal is still an HTTP status."""
        self._submit()
        events = self._events()
        try:
            first = await anext(events)
        except BaseException:
            self._leave()
            raise
        failure = _failure(first[0])
        if failure is not None:
            self._leave()
            return error_response(failure)
        return StreamingResponse(
            self._sse(first, events),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def _sse(self, first: tuple[_Answer, Event], events: AsyncIterator[tuple[_Answer, Event]]) -> AsyncIterator[bytes]:
        call = self._call
        envelope = self._envelope(chunk=True)
        try:
            if call.chat:
                for answer in self._answers.values():
                    yield _line(
                        {
                            **envelope,
                            "choices": [
                                {
                                    "index": answer.index,
                                    "delta": {"role": "assistant", "content": ""},
                                    "logprobs": None,
                                    "finish_reason": None,
                                }
                            ],
                            **self._usage_so_far(),
                        }
                    )
            for line in self._chunks(envelope, *first):
                yield line
            async for answer, event in events:
                for line in self._chunks(envelope, answer, event):
                    yield line
            if call.include_usage:
                yield _line({**envelope, "choices": [], "usage": self._usage()})
            yield b"data: [DONE]\n\n"
        finally:
            self._leave()

    def _usage_so_far(self) -> dict[str, Any]:
        """What a chunk says of usage: that comes last, unless it was asked for all along."""
        if self._call.running_usage:
            return {"usage": self._usage()}
        return {"usage": None} if self._call.include_usage else {}

    def _chunks(self, envelope: dict[str, Any], answer: _Answer, event: Event) -> list[bytes]:
        """The lines of one event; an answer's first comes after its echoed prompt, whose scores are there by then."""
        lines = []
        if answer.offset is None:
            answer.offset = 0
            if self._call.echo:
                lines.append(_line({**envelope, "choices": [self._echo_chunk(answer)], **self._usage_so_far()}))
        return [*lines, self._chunk(envelope, answer, event)]

    def _echo_chunk(self, answer: _Answer) -> dict[str, Any]:
        prompt = self._call.prompts[answer.index // self._call.n].tolist()
        tokenizer = self._server.model.tokenizer
        logprobs = None
        if self._call.params.logprobs is not None:
            logprobs = completion_logprobs([None, *answer.prompt_scores], tokenizer, prompt[0], 0)
        answer.offset = sum(map(tokenizer.characters, prompt))
        return {
            "index": answer.index,
            "text": tokenizer.decode(prompt) if tokenizer.available else None,
            "logprobs": logprobs,
            "finish_reason": None,
        }

    def _chunk(self, envelope: dict[str, Any], answer: _Answer, event: Event) -> bytes:
        call, tokenizer = self._call, self._server.model.tokenizer
        assert not isinstance(event, PromptEvent)
        failure = _failure(answer) if isinstance(event, FinishEvent) else None
        if failure is not None:
            return _line(error_body(failure.message, failure.kind, failure.param, failure.code))
        draws = [event.draw] if isinstance(event, TokenEvent) and call.params.logprobs is not None else []
        reason = answer.reason if isinstance(event, FinishEvent) else None
        choice: dict[str, Any] = {"index": answer.index}
        if call.chat:
            choice["delta"] = {"content": event.text} if event.text else {}
            choice["logprobs"] = chat_logprobs(draws, tokenizer) if draws else None
        else:
            choice["text"] = (event.text or "") if tokenizer.available else None
            choice["logprobs"] = completion_logprobs(list(draws), tokenizer, None, answer.offset or 0) if draws else None
            answer.offset = (answer.offset or 0) + sum(tokenizer.characters(d.token) for d in draws)
        choice["finish_reason"] = reason
        if call.return_token_ids:
            choice["token_ids"] = [event.token] if isinstance(event, TokenEvent) else []
        return _line({**envelope, "choices": [choice], **self._usage_so_far()})


def _failure(answer: _Answer) -> RequestError | None:
    """The error that a choice ended with, if it did."""
    reason = answer.reason or ""
    if reason.startswith("refused:"):
        _, status, code = reason.split(":", 2)
        return RequestError(
            answer.failure,
            status=int(status),
            kind="rate_limit_error" if status == "429" else "invalid_request_error",
            code=code or None,
        )
    if reason == "timeout":
        return RequestError(answer.failure, status=408, kind="timeout_error", code="timeout")
    if reason in ("error", "cancelled"):
        return RequestError(
            answer.failure or "the request was cancelled",
            status=503 if reason == "cancelled" else 500,
            kind="server_error",
            code=reason,
        )
    return None


def _line(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _disconnected(http: HttpRequest) -> None:
    while True:
        message = await http.receive()
        if message["type"] == "http.disconnect":
            return


async def _body(http: HttpRequest) -> dict[str, Any]:
    """The JSON object of a request; raises RequestError for what is too large or is none."""
    raw = bytearray()
    async for chunk in http.stream():
        raw += chunk
        if len(raw) > BODY_LIMIT:
            raise RequestError(f"the body is larger than {BODY_LIMIT} bytes", status=413, code="body_too_large")
    try:
        value = json.loads(bytes(raw))
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    return value


async def _not_found(http: HttpRequest, error: Exception) -> Response:
    return JSONResponse(error_body(f"there is no {http.url.path} here", code="not_found"), 404)


async def _wrong_method(http: HttpRequest, error: Exception) -> Response:
    return JSONResponse(error_body(f"{http.method} is not allowed on {http.url.path}", code="method_not_allowed"), 405)


async def _failed(http: HttpRequest, error: Exception) -> Response:
    message = error.message if isinstance(error, LlmcError) else "an internal error"
    return JSONResponse(error_body(message, "server_error", code="internal_error"), 500)
