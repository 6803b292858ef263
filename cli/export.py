"""llmc export: a checkpoint that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import emit
from .options import as_json, compiling, debug


@click.command(
    "export", epilog="Example: llmc export ./gptq --from ./SmolLM2-135M --format gptq --quant int4:g128 --algorithm gptq"
)
@click.argument("out_dir", metavar="OUT_DIR")
@click.option("--from", "source", required=True, metavar="SRC", help="The checkpoint to read.")
@click.option("--format", "form", required=True, metavar="NAME", help="compressed-tensors, gptq, awq, gguf or dense.")
@compiling
@as_json
@debug
def command(out_dir: str, source: str, form: str, as_json: bool, **options: Any) -> None:
    """Write a checkpoint that other tools read, with the weights as the artifact would compute with them: `dense` in float32,
    `gguf` as OUT_DIR/model.gguf, the others as codes and scales that transformers and vLLM load."""
    from ..export import export

    written = export(source, Path(out_dir), form, quiet=as_json, **options)
    if as_json:
        emit({"folder": out_dir, "format": form, "tensors": written})
    else:
        click.echo(f"{out_dir}: {written} tensors")
