"""llmc tune: search kernel configurations on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from .main import emit
from .options import as_json, debug


@click.command("tune", epilog="Example: llmc tune -o here.json && llmc compile ./SmolLM2-135M -o smollm2.llmc --tuning here.json")
@click.option("-o", "--out", required=True, metavar="TABLE.json", help="The tuning table to write.")
@click.option("--isa", default="", metavar="LEVEL", help="Instruction-set level to tune for (default: the best of this CPU).")
@click.option("--threads", type=click.IntRange(1, 256), help="Threads (default: the CPUs that this process may use).")
@click.option("--force", is_flag=True, help="Replace TABLE.json if it exists.")
@as_json
@debug
def command(out: str, isa: str, threads: int | None, force: bool, as_json: bool) -> None:
    """Search the fastest CPU kernel configurations on this machine, in some minutes.

    The table changes how much a kernel takes at a time, and no bit of what it computes. `llmc compile --tuning` uses it; an
    artifact's hash covers it.
    """
    if Path(out).exists() and not force:
        raise UsageError(f"{out} exists", "give --force to replace it")
    if not Path(out).resolve().parent.is_dir():
        raise UsageError(f"the folder of {out} does not exist", "create it first")
    from ..pipeline import Progress
    from ..tune import tune

    table = tune(out, isa=isa, threads=threads, each=Progress(as_json).each)
    if as_json:
        emit(table)
        return
    (measured,) = table["provenance"]
    for row in measured["tried"]:
        click.echo(
            f"{row['knob']} {row['value']}: {row['time']:.3f} of the time with {row['against']}{', taken' if row['taken'] else ''}"
        )
    click.echo(
        f"wrote {out}: {measured['level']}, "
        + (
            ", ".join(f"{k} {v}" for k, v in table["levels"][measured["level"]].items())
            or "the values that kernels have without a table"
        )
    )
