"""llmc opt: run passes on textual IR."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import InputError, VerifyError
from .options import debug


@click.command("opt", epilog="Example: llmc opt model.ir --passes 'simplify,quantize{scheme=int4},merge_linears'")
@click.argument("file", metavar="FILE.ir")
@click.option("--passes", required=True, metavar="'p1,p2{x=1}'", help="Passes in order, options in braces.")
@debug
def command(file: str, passes: str) -> None:
    """Run passes on textual IR and print the result. FILE may be - for standard input."""
    from ..compiler.ir.text import parse_graph, print_graph
    from ..compiler.ir.verify import verify
    from ..passes.pass_ import parse_passes

    steps = parse_passes(passes)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    try:
        graph = verify(parse_graph(text))
    except VerifyError as error:
        raise InputError(f"{file} is not valid IR: {error.message}", error.hint) from error
    for step in steps:
        graph = verify(step.run(graph), step.name)
    click.echo(print_graph(graph), nl=False)
