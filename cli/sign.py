"""llmc sign: a detached signature beside the artifact."""

from __future__ import annotations

from pathlib import Path

import click

from .main import emit
from .options import as_json, debug


@click.command("sign", epilog="Example: llmc sign smollm2.llmc --private-key key.pem")
@click.argument("artifact", metavar="OUT.llmc")
@click.option("--private-key", required=True, metavar="F", help="An elliptic-curve private key in PEM.")
@click.option("--signature", metavar="F", help="Where to write the signature (default: OUT.llmc.sig).")
@as_json
@debug
def command(artifact: str, private_key: str, signature: str | None, as_json: bool) -> None:
    """Sign an artifact with an elliptic-curve key (OpenSSF model signing)."""
    from ..runtime.artifact import open_artifact
    from ..runtime.verify import default_signature, sign

    with open_artifact(artifact) as opened:
        opened.check_weights()
    out = Path(signature) if signature else default_signature(Path(artifact))
    sign(Path(artifact), Path(private_key), out)
    if as_json:
        emit({"artifact": artifact, "signature": str(out)})
    else:
        click.echo(f"{out}: signature of {artifact}")
