"""llmc chat: a terminal chat."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from ..errors import RequestError
from .options import debug, machine

HELP = "/new starts over, /system TEXT sets the system message, /save FILE writes the conversation, /exit ends; a line that ends in \\ goes on"


@click.command("chat", epilog="Example: llmc chat smollm2.llmc")
@click.argument("artifact", metavar="OUT.llmc")
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens in an answer at most.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Default: the model's own, else 0.7.")
@click.option("--top-p", type=float, help="Default: the model's own, else 0.95.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@machine
@debug
def command(
    artifact: str,
    system: str | None,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    threads: int | None,
    target: str,
    isa: str,
    portable: bool,
) -> None:
    """Talk to a model in the terminal. Ctrl-C stops an answer, Ctrl-D ends."""
    from ..runtime.api import load
    from ..runtime.chat_template import render_chat
    from ..runtime.engine import FinishEvent

    with load(artifact, threads=threads, target=target, isa=isa, portable=portable, max_batch=1) as model:
        defaults = model.tokenizer.generation
        settings = {
            "max_tokens": max_tokens,
            "temperature": temperature if temperature is not None else float(defaults.get("temperature") or 0.7),
            "top_p": top_p if top_p is not None else float(defaults.get("top_p") or 0.95),
            "seed": seed,
        }
        if model.tokenizer.chat_template is None:
            raise RequestError("this model has no chat template", param="messages")
        ask = _prompt()
        click.echo(f"{model.artifact.manifest['model']['architecture']} — {HELP}", err=True)
        messages = [{"role": "system", "content": system}] if system else []
        while True:
            try:
                line = ask()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if not line.strip():
                continue
            if line.startswith("/"):
                if not _command(line.strip(), messages):
                    return
                continue
            messages.append({"role": "user", "content": line})
            prompt = model.tokenizer.encode(
                render_chat(model.tokenizer.chat_template, messages, model.tokenizer.special_tokens()), special=False
            )
            answer = ""
            try:
                for event in model.stream(prompt, **settings):
                    piece = getattr(event, "text", None) or ""
                    answer += piece
                    sys.stdout.write(piece)
                    sys.stdout.flush()
                    if isinstance(event, FinishEvent) and event.reason == "length":
                        click.echo(" […]", nl=False)
            except KeyboardInterrupt:
                click.echo(" [stopped]", nl=False)
            except RequestError as error:
                messages.pop()
                click.echo(f"{error.message} (/new starts over)", err=True)
                continue
            click.echo()
            messages.append({"role": "assistant", "content": answer})


def _prompt() -> Callable[[], str]:
    """A function that reads one message: with history and editing on a terminal, plain lines otherwise."""
    if not sys.stdin.isatty():

        def read() -> str:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\n")

        return _joined(read)
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    return _joined(lambda: session.prompt("> "))


def _joined(read: Callable[[], str]) -> Callable[[], str]:
    def ask() -> str:
        lines = [read()]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read())
        return "\n".join(lines)

    return ask


def _command(line: str, messages: list[dict[str, str]]) -> bool:
    """Carry out a /command; False ends the chat."""
    word, _, rest = line.partition(" ")
    if word in ("/exit", "/quit"):
        return False
    if word == "/new":
        messages[:] = [m for m in messages if m["role"] == "system"]
        click.echo("(a new conversation)", err=True)
    elif word == "/system":
        messages[:] = [{"role": "system", "content": rest}] if rest else []
        click.echo("(a new conversation with this system message)", err=True)
    elif word == "/save" and rest:
        try:
            with open(rest, "w", encoding="utf-8") as out:
                out.writelines(f"{m['role']}: {m['content']}\n\n" for m in messages)
            click.echo(f"({rest} written)", err=True)
        except OSError as error:
            click.echo(f"({rest} cannot be written: {error.strerror})", err=True)
    else:
        click.echo(f"({HELP})", err=True)
    return True
