"""Chat templates: the model's own jinja2 template, in a sandbox, with limits on time and size."""

from __future__ import annotations

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
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise RequestError(f"the chat template refuses this conversation: {message}", param="messages")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    out: list[str] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            size = 0
            stream = environment.from_string(template).generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **special, **(extra or {})
            )
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
        raise RequestError(f"the chat template takes more than {TIME_LIMIT_S:.0f} s", param="messages")
    if failure:
        error = failure[0]
        if isinstance(error, RequestError):
            raise error
        if isinstance(
            error,
            TemplateError
            | SecurityError
            | TypeError
            | ValueError
            | KeyError
            | AttributeError
            | OverflowError
            | RecursionError
            | MemoryError,
        ):
            raise RequestError(f"the chat template does not accept these messages: {error}", param="messages") from error
        raise error
    return "".join(out)
