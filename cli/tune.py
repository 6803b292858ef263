"""llmc tune: search kernel configurations on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from .main import emit
from .options import as_json, debug


@click.command("tune", epilog="Example: llmc tune -o here.json && llmc compile ./SmolLM2-135M -o smollm2.llmc --tuning here.json")
@click.argument("artifacts", nargs=-1, metavar="[ARTIFACT.llmc]...")
@click.option("-o", "--out", required=True, metavar="TABLE.json", help="The tuning table to write.")
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="cpu; cuda or rocm, for the GPU of this machine; or its chip, such as cuda:sm_90.",
)
@click.option("--isa", default="", metavar="LEVEL", help="Instruction-set level to tune for (default: the best of this CPU).")
@click.option("--threads", type=click.IntRange(1, 256), help="Threads (default: the CPUs that this process may use).")
@click.option(
    "--model",
    default="",
    metavar="SRC",
    help="GPU: a folder or hub id whose products are tuned (default: the shapes of Llama-3.1-8B).",
)
@click.option(
    "--quant",
    "quants",
    multiple=True,
    metavar="SCHEME",
    help="GPU: a scheme of theirs; repeatable (default: bf16, int4:g128/bf16, int8, fp8).",
)
@click.option("--force", is_flag=True, help="Replace TABLE.json if it exists.")
@as_json
@debug
def command(
    artifacts: tuple[str, ...], out: str, target: str, isa: str, threads: int | None, model: str, quants: tuple[str, ...], force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Search the fastest kernel configurations on this machine, in some minutes.

    The table changes how much a kernel takes at a time, and no bit of what it computes. `llmc compile --tuning` uses it; an
    artifact's hash covers it. On a GPU it is for products of the shapes that were tuned: of the files given, which need kernels for it
    but no weights, or of a model compiled here.
    """
    gpu = target != "cpu"
    for option, given in (
        (("--isa", isa), ("--threads", threads))
        if gpu
        else (("ARTIFACT.llmc", artifacts), ("--model", model), ("--quant", quants))
    ):
        if given:
            raise UsageError(f"{option} has no effect with --target {target}", f"it is for {'CPUs' if gpu else 'GPUs'}")
    if artifacts and (model or quants):
        raise UsageError(
            "files are tuned as they are: --model and --quant are for a model compiled here", "leave out one or the other"
        )
    if Path(out).is_dir():
        raise UsageError(f"{out} is a folder", "name the table's file")
    if Path(out).exists() and not force:
        raise UsageError(f"{out} exists", "give --force to replace it")
    if not Path(out).resolve().parent.is_dir():
        raise UsageError(f"the folder of {out} does not exist", "create it first")
    from ..pipeline import Progress

    if gpu:
        from ..tune_gpu import SCHEMES, tune_gpu

        table = tune_gpu(out, target, model=model, quants=quants or SCHEMES, artifacts=artifacts, each=Progress(as_json).each)
    else:
        from ..tune import tune

        table = tune(out, isa=isa, threads=threads, each=Progress(as_json).each)
    if as_json:
        emit(table)
        return
    (_show_gpu if gpu else _show_cpu)(out, table)


def _show_cpu(out: str, table: dict[str, Any]) -> None:
    (measured,) = table["provenance"]
    for row in measured["tried"]:
        click.echo(
            f"{row['knob']} {row['value']}: {row['time']:.3f} of the time with {row['against']}{', taken' if row['taken'] else ''}"
        )
    found = ", ".join(f"{k} {v}" for k, v in table["levels"][measured["level"]].items())
    click.echo(f"wrote {out}: {measured['level']}, {found or 'the values that kernels have without a table'}")


def _show_gpu(out: str, table: dict[str, Any]) -> None:
    (measured,) = table["provenance"]
    taken = [row for row in measured["tried"] if row.get("taken")]
    for row in taken:
        fields = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("product", "rows", "time", "taken"))
        rows = f"up to {row['rows']}" if row["rows"] else "any number of"
        click.echo(f"{row['product']}, {rows} rows: {row['time']:.3f} of the time with {fields}")
    refused = sum(row.get("refused", False) for row in measured["tried"])
    click.echo(
        f"wrote {out}: {measured['level']}, {len(measured['tried'])} candidates, {len(taken)} taken, {refused} that did not compile or changed bits"
    )
