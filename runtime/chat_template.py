"""Chat templates: the model's own jinja2 template, in a sandbox, with limits on time and size."""

from __future__ import annotations

import ctypes
import json
import threading
from datetime import datetime
from typing import Any

from ..errors import RequestError

TIME_LIMIT_S = 5.0
SIZE_LIMIT = 4 << 20


def render_chat(
    template: str | None,
    messages: list[dict[str, Any]],
    special: dict[str, str],
    *,
    add_generation_prompt: bool = True,
    extra: dict[str, Any] | None = None,
) -> str:
    """The prompt text for a conversation. Raises RequestError: no template, a template's own refusal, or a limit."""
    if template is None:
        raise RequestError("this model has no chat template: use completions, or give the prompt as text", param="messages")
    from jinja2.exceptions import SecurityError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise RequestError(f"the chat template refuses this conversation: {message}", param="messages")

    class Environment(ImmutableSandboxedEnvironment):
        """Powers and products of large operands are refused: they would hold the interpreter beyond any time limit."""

        intercepted_binops = frozenset({"**", "*"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and not (
                isinstance(left, int | float) and isinstance(right, int | float) and abs(left) < 1e6 and abs(right) < 64
            ):
                raise SecurityError("a power of such operands is not allowed")
            grows = isinstance(left, str | bytes | list | tuple) or isinstance(right, str | bytes | list | tuple)
            if (
                operator == "*"
                and (grows or max(_size(left), _size(right)) >= SIZE_LIMIT)
                and _size(left) * _size(right) > SIZE_LIMIT
            ):
                raise SecurityError("a product of such operands is not allowed")
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    out: list[str] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            size = 0
            values = {"add_generation_prompt": add_generation_prompt, **special, **(extra or {}), "messages": messages}
            stream = environment.from_string(template).generate(**values)
            for piece in stream:
                size += len(piece)
                if size > SIZE_LIMIT or abandoned.is_set():
                    raise RequestError("the rendered conversation is too long", param="messages")
                out.append(piece)
        except BaseException as error:
            failure.append(error)

    abandoned = threading.Event()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TIME_LIMIT_S)
    if thread.is_alive():
        abandoned.set()
        _interrupt(thread)
        raise RequestError(f"the chat template takes more than {TIME_LIMIT_S:.0f} s", param="messages")
    if failure:
        error = failure[0]
        if isinstance(error, RequestError):
            raise error
        if isinstance(error, Exception):  # whatever a stranger's template runs into, it is the template that failed
            raise RequestError(f"the chat template does not accept these messages: {error}", param="messages") from error
        raise error
    return "".join(out)


def _size(value: Any) -> int:
    """How much a product with this operand may grow: a text's length, a number's digits."""
    if isinstance(value, str | bytes | list | tuple):
        return max(1, len(value))
    if isinstance(value, int):
        return max(1, abs(value)) if abs(value) < 1 << 64 else SIZE_LIMIT
    return 1


def _interrupt(thread: threading.Thread) -> None:
    """End a thread that runs a template which prints nothing: raise SystemExit in it."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
