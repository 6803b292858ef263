"""llmc generate: one completion."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import InputError, UsageError
from .main import emit, process_age_s
from .options import as_json, debug, machine


@click.command("generate", epilog='Example: llmc generate smollm2.llmc --chat --prompt "Name three rivers." --max-tokens 64')
@click.argument("artifact", metavar="OUT.llmc")
@click.option("--prompt", metavar="TEXT", help="The prompt.")
@click.option("--prompt-file", metavar="F", help="Read the prompt from a file (- for standard input).")
@click.option("--input-ids", metavar="1,2,3", help="The prompt as token ids.")
@click.option("--chat", is_flag=True, help="Apply the model's chat template to the prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens to generate at most.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 takes the most likely token each time."
)
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Sample from the smallest set of tokens with this probability."
)
@click.option("--seed", type=click.IntRange(-(2**63), 2**63 - 1), help="Seed of the sampling.")
@click.option("--stop", multiple=True, metavar="S", help="End before this text; repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the end token.")
@machine
@as_json
@debug
def command(
    artifact: str,
    prompt: str | None,
    prompt_file: str | None,
    input_ids: str | None,
    chat: bool,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    threads: int | None,
    target: str,
    isa: str,
    portable: bool,
    as_json: bool,
) -> None:
    """Generate one completion and stream it to standard output."""
    from ..runtime.api import load
    from ..runtime.engine import FinishEvent, TokenEvent

    if sum(x is not None for x in (prompt, prompt_file, input_ids)) != 1:
        raise UsageError("give exactly one of --prompt, --prompt-file and --input-ids")
    with load(artifact, threads=threads, target=target, isa=isa, portable=portable, max_batch=1) as model:
        loaded = process_age_s()
        ids = _prompt_ids(model, prompt, prompt_file, input_ids, chat)
        settings = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stop": stop,
            "ignore_eos": ignore_eos,
        }
        text: list[str] = []
        tokens: list[int] = []
        first = last = 0.0
        reason = "length"
        for event in model.stream(ids, **settings):
            if isinstance(event, TokenEvent):
                last = process_age_s() if as_json else 0.0
                first = first or process_age_s()
                tokens.append(event.token)
            elif isinstance(event, FinishEvent):
                reason = event.reason
            piece = getattr(event, "text", None) or ""
            text.append(piece)
            if not as_json:
                sys.stdout.write(
                    piece if model.tokenizer.available else f"{tokens[-1]} " if isinstance(event, TokenEvent) else ""
                )
                sys.stdout.flush()
        if not as_json:
            sys.stdout.write("\n")
            return
        speed = (len(tokens) - 1) / (last - first) if len(tokens) > 1 and last > first else None
        emit(
            {
                "text": "".join(text) if model.tokenizer.available else None,
                "token_ids": tokens,
                "prompt_tokens": len(ids),
                "finish_reason": reason,
                "seconds": {"load": loaded, "first_token": first, "total": process_age_s()},
                "decode_tok_s": speed,
            }
        )


def _prompt_ids(model: object, prompt: str | None, prompt_file: str | None, input_ids: str | None, chat: bool) -> list[int]:
    from ..runtime.api import Model
    from ..runtime.chat_template import render_chat

    assert isinstance(model, Model)
    if input_ids is not None:
        if chat:
            raise UsageError("--chat takes text, not --input-ids")
        try:
            return model.encode([int(t) for t in input_ids.replace(" ", "").split(",") if t]).tolist()
        except ValueError as error:
            raise UsageError(f"--input-ids {input_ids!r} is not a list of numbers", "write 1,2,3") from error
    if prompt_file is not None:
        try:
            prompt = sys.stdin.read() if prompt_file == "-" else Path(prompt_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{prompt_file} cannot be read: {error}") from error
    assert prompt is not None
    if chat:
        text = render_chat(model.tokenizer.chat_template, [{"role": "user", "content": prompt}], model.tokenizer.special_tokens())
        return model.tokenizer.encode(text, special=False)
    return model.encode(prompt).tolist()
