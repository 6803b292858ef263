"""The engine in a thread of its own: requests come in through a queue, a step's events leave it in one call."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import RequestError
from .engine import Engine, Event, FinishEvent, Request

Delivery = list[tuple[Callable[[Event], None], Event]]


@dataclass(frozen=True, slots=True)
class _Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class _Cancel:
    request: Request


class EngineThread:
    """Owns an engine and the thread that runs it. `deliver` gets each step's (listener, event) pairs, in the engine's thread.

    Every submitted request ends with exactly one FinishEvent a choice, also when the engine fails or is stopped.
    """

    def __init__(self, engine: Engine, deliver: Callable[[Delivery], None]) -> None:
        self._engine = engine
        self._deliver = deliver
        self._inbox: queue.SimpleQueue[_Submit | _Cancel | None] = queue.SimpleQueue()
        self._outbox: Delivery = []
        self._live: set[Request] = set()
        self._thread = threading.Thread(target=self._run, name="llmc-engine", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Hand over a request; refusals come back as a FinishEvent with reason "error"."""
        listener, left = request.on_event, [request.n]

        def forward(event: Event) -> None:
            if isinstance(event, FinishEvent):
                left[0] -= 1
                if left[0] == 0:
                    self._live.discard(request)
            self._outbox.append((listener, event))

        request.on_event = forward
        self._inbox.put(_Submit(request))

    def cancel(self, request: Request) -> None:
        """End a request within a step; one that has ended is left alone."""
        self._inbox.put(_Cancel(request))

    def stop(self) -> None:
        """End all requests and the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._receive():
                self._engine.step()
                self._flush()
            reason, message = "cancelled", "the server is stopping"
        except BaseException as error:  # the thread must not die in silence: requests end, and the server reports it
            self.failure = error
            reason, message = "error", f"the engine failed: {type(error).__name__}: {error}"
        for request in list(self._live):
            self._end(request, reason, message)
        self._flush()
        if self.failure is not None:
            self._refuse_all(message)

    def _refuse_all(self, message: str) -> None:
        while (item := self._inbox.get()) is not None:
            if isinstance(item, _Submit):
                self._end(item.request, "error", message)
                self._flush()

    def _end(self, request: Request, reason: str, message: str) -> None:
        with contextlib.suppress(Exception):  # the engine's state may be broken: the listener still hears the end
            self._engine.cancel(request, reason)
        if request in self._live or not request.sequences:
            self._live.discard(request)
            for index in range(request.n):
                request.on_event(FinishEvent(index, reason, None, message))

    def _receive(self) -> bool:
        """Take in what has come; wait when there is nothing to do. False at the end."""
        block = self._engine.idle
        while True:
            try:
                item = self._inbox.get(block=block)
            except queue.Empty:
                return True
            block = False
            if item is None:
                return False
            if isinstance(item, _Cancel):
                if item.request in self._live:
                    self._engine.cancel(item.request)
                    self._flush()
            else:
                self._admit(item.request)

    def _admit(self, request: Request) -> None:
        self._live.add(request)
        try:
            self._engine.submit(request)
        except RequestError as error:
            self._live.discard(request)
            for index in range(request.n):
                request.on_event(FinishEvent(index, f"refused:{error.status}:{error.code or ''}", None, error.message))
            self._flush()

    def _flush(self) -> None:
        if self._outbox:
            out, self._outbox = self._outbox, []
            self._deliver(out)
