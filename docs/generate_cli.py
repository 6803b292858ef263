"""Write docs/cli.md from the commands themselves: `python docs/generate_cli.py`; `--check` exits 1 when the file is stale."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from pathlib import Path

import click
from llmc import errors
from llmc.cli.main import COMMANDS
from llmc.quant.scheme import ALIASES

WIDTH = 110
FILE = Path(__file__).parent / "cli.md"
OTHERS = {0: "Done.", 130: "Interrupted."}
INTRO = """
Written by `python docs/generate_cli.py`: do not edit.

Results go to standard output, progress and logs to standard error. With `--json` a command prints one JSON object and nothing else on standard output; on failure that object is `{"error": {"type", "message", "hint"}, "exit"}`. Sizes are written `80MB` or `1GiB`, durations are seconds. An unknown option, name or key is an error that names the nearest valid one. Files appear whole or not at all. `llmc COMMAND --help` prints what stands here.
"""
SCHEMES = """
A scheme is `KIND[:GRANULARITY][:SCALES][:asym][/ACTIVATIONS]`.

- KIND: integers `int2`, `int3`, `int4`, `int5`, `int6`, `int8`; 8-bit floats `fp8_e4m3`, `fp8_e5m2`; blocks that share an exponent `mxfp4`, `mxfp8`; `nvfp4`; the table `nf4`; whole floats `bf16`, `f16`, `f32`.
- GRANULARITY: `g16`, `g32`, `g64` or `g128` values of K share a scale, or a `channel` (an output) does, a `block128` (128 × 128 values), or the whole `tensor`. Without one it is `channel` for `int8` and 8-bit floats, `g64` for other kinds. `mxfp4`, `mxfp8` (32) and `nvfp4` (16) have their own.
- SCALES: `scale-f16`, `scale-bf16`, `scale-f32` or `scale-int8` say how groups' scales are stored; float16 without one. `scale-int8` are whole numbers that count a power of two for each output: second-level quantization, half the bytes of float16.
- `asym` adds a zero point to each scale of an integer kind.
- ACTIVATIONS: what the other operand of the product is rounded to: `bf16`; `int8`, `int8-asym` (per token, dynamic); `fp8`, `fp8-g128` (e4m3, a scale for each token or 128 values of one); `mxfp8`, `mxfp4`, `nvfp4`; `f32` or `f16` (not rounded).

Weights kept from another tool's checkpoint may also say `iq4`, `stored`, `offset` and `order-HASH`: how that tool stored them.

Under an integer scheme embedding tables and the head get `int8:channel`, and the routers of experts stay as they are, unless `--scheme GLOB=SCHEME` names them. Globs match module names such as `model.layers.0.mlp.down_proj`; the last match wins, and one that matches nothing is an error. Tied weights share one scheme. Embedding tables take `int8:channel` or a floating-point scheme. `--activations`, `--group-size` and `--asymmetric` change the scheme that `--quant` names, not those of `--scheme`.
"""


def wrapped(text: str) -> str:
    """Paragraphs and list items, each filled to WIDTH."""
    out = []
    for part in text.strip().split("\n"):
        indent = "  " if part.startswith("- ") else ""
        out.append(textwrap.fill(part, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))
    return "\n".join(out)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table with columns of equal width, but for the last."""
    cells = [tuple(c.replace("|", "\\|") for c in row) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head) - 1)]
    lines = ["| " + " | ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) + " |" for row in cells]
    lines.insert(1, "|" + "|".join(["-" * (w + 2) for w in widths] + ["---"]) + "|")
    return "\n".join(lines)


def metavar(option: click.Option) -> str:
    """What an option's value is called; empty for a flag."""
    if option.is_flag:
        return ""
    if option.metavar:
        return option.metavar
    return {"integer range": "INTEGER", "float range": "FLOAT"}.get(option.type.name, option.type.name.upper())


def option_row(option: click.Option) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = metavar(option)
    default = ""
    if option.required:
        default = "required"
    elif option.show_default and not option.is_flag:
        default = f"`{option.default}`"
    text = " ".join((option.help or "").split())
    return (f"{names} {value}".strip(), default, text)


def command_section(name: str) -> str:
    command = importlib.import_module(f"llmc.cli.{name}").command
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    words = [a.metavar or a.name.upper() for a in arguments]
    shown = [w if a.required else f"[{w}]" for a, w in zip(arguments, words, strict=True)]
    lines = [f"## llmc {name}", "", "```", " ".join(["llmc", name, "[OPTIONS]", *shown]), "```", ""]
    help_text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    lines += ["\n\n".join(wrapped(" ".join(p.split())) for p in help_text.split("\n\n")), ""]
    if options:
        lines += [table(("Option", "Default", "Meaning"), [option_row(o) for o in options]), ""]
    if command.epilog:
        lines += [f"Example: `{' '.join(command.epilog.removeprefix('Example: ').split())}`", ""]
    return "\n".join(lines)


def exit_statuses() -> str:
    found: dict[int, list[type[errors.LlmcError]]] = {}
    for item in vars(errors).values():
        if isinstance(item, type) and issubclass(item, errors.LlmcError):
            found.setdefault(item.exit_status, []).append(item)
    rows = [(str(n), "", text) for n, text in OTHERS.items()]
    for status, classes in found.items():
        for item in classes:
            meaning = "A bug in llmc." if item is errors.LlmcError else " ".join((item.__doc__ or "").split())
            rows.append((str(status), f"`{item.__name__}`", meaning))
    rows.sort(key=lambda row: int(row[0]))
    return table(("Status", "Error", "Meaning"), rows)


def schemes() -> str:
    aliases = table(("Written", "Means"), [(f"`{short}`", f"`{long}`") for short, long in ALIASES.items() if short != "fp8"])
    return f"{wrapped(SCHEMES)}\n\n{aliases}\n"


def render() -> str:
    parts = ["# Command line\n", wrapped(INTRO) + "\n", "| Command | Does |\n|---|---|"]
    for name in COMMANDS:
        summary = " ".join(
            inspect.cleandoc(importlib.import_module(f"llmc.cli.{name}").command.help or "").split("\n\n")[0].split()
        )
        parts.append(f"| [`llmc {name}`](#llmc-{name}) | {summary} |")
    parts.append("\nSee also [schemes](#schemes) and [exit statuses](#exit-statuses).\n")
    parts += [command_section(name) for name in COMMANDS]
    parts += ["## Schemes\n", schemes(), "## Exit statuses\n", exit_statuses()]
    return "\n".join(parts) + "\n"


def main() -> int:
    text = render()
    if "--check" in sys.argv[1:]:
        if FILE.is_file() and FILE.read_text("utf-8") == text:
            return 0
        print("docs/cli.md is stale: run python docs/generate_cli.py", file=sys.stderr)
        return 1
    FILE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
