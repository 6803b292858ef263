"""Serving: bind, announce, and end in order."""

from __future__ import annotations

import asyncio
import signal
import socket

import uvicorn

from ...errors import EnvironmentLacks
from .app import Server


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks one. Raises EnvironmentLacks when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(2048)
    except (OSError, OverflowError) as error:
        made.close()
        raise EnvironmentLacks(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            "give another --port, or 0 to pick a free one",
        ) from error
    made.set_inheritable(True)
    return made


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handlers: ours drain."""

    def install_signal_handlers(self) -> None: ...

    def capture_signals(self) -> object:  # type: ignore[override]
        import contextlib

        return contextlib.nullcontext()


def serve(server: Server, listener: socket.socket, drain_s: float) -> None:
    """Serve until a signal. The first SIGTERM or SIGINT refuses new requests and lets running ones finish within `drain_s`
    seconds; a second one ends at once."""
    asyncio.run(_serve(server, listener, drain_s))


async def _serve(server: Server, listener: socket.socket, drain_s: float) -> None:
    config = uvicorn.Config(
        server.app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        http="h11",
        loop="asyncio",
        backlog=2048,
    )
    http = _Uvicorn(config)
    ending = asyncio.Event()

    def on_signal() -> None:
        if ending.is_set():
            server.draining = True
            http.should_exit = http.force_exit = True
            skip.set()
        ending.set()

    skip = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server.start()
    task = asyncio.create_task(http.serve([listener]))
    while not http.started and not task.done():
        await asyncio.sleep(0.002)
    host, port = listener.getsockname()[:2]
    print(f"ready http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    wait = asyncio.create_task(ending.wait())
    await asyncio.wait({wait, task}, return_when=asyncio.FIRST_COMPLETED)
    wait.cancel()
    server.draining = True
    end = loop.time() + drain_s
    while server.active and loop.time() < end and not skip.is_set() and not task.done():
        await asyncio.sleep(0.02)
    http.should_exit = True
    server.stop()
    await task
