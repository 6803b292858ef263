"""llmc export: a checkpoint that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UnsupportedError, UsageError, nearest
from .main import emit
from .options import as_json, compiling, debug

FORMATS = ("dense", "compressed-tensors", "gptq", "awq", "gguf")


@click.command("export", epilog="Example: llmc export ./dense --from ./SmolLM2-135M --format dense --quant int4")
@click.argument("out_dir", metavar="OUT_DIR")
@click.option("--from", "source", required=True, metavar="SRC", help="The checkpoint to read.")
@click.option("--format", "form", required=True, metavar="NAME", help="dense: float32 safetensors of the (de)quantized weights.")
@compiling
@as_json
@debug
def command(out_dir: str, source: str, form: str, as_json: bool, **options: Any) -> None:
    """Write a checkpoint that other tools read. `dense` holds the weights as the artifact would compute with them."""
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", nearest(form, FORMATS))
    if form != "dense":
        raise UnsupportedError(f"the format {form} is not supported yet", "use --format dense")
    from ..export import export_dense

    written = export_dense(source, Path(out_dir), quiet=as_json, **options)
    if as_json:
        emit({"folder": out_dir, "format": form, "tensors": written})
    else:
        click.echo(f"{out_dir}: {written} tensors")
