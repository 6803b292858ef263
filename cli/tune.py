"""llmc tune: search kernel configurations on this machine."""

from __future__ import annotations

import click

from ..errors import UnsupportedError
from .options import as_json, debug


@click.command("tune")
@click.option("-o", "--out", required=True, metavar="TABLE.json", help="The tuning table to write.")
@as_json
@debug
def command(out: str, as_json: bool) -> None:
    """Search kernel configurations on this machine (not supported yet)."""
    raise UnsupportedError("tuning is not supported yet: kernels use one configuration a level", "compile without --tuning")
