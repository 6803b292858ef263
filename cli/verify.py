"""llmc verify: prove that an artifact is whole, computes what it computed, and comes from its sources."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..errors import GateFailed, UsageError
from .main import emit
from .options import as_json, debug


@click.command("verify", epilog="Example: llmc verify smollm2.llmc --rebuild --signature smollm2.llmc.sig --public-key key.pub")
@click.argument("artifact", metavar="OUT.llmc")
@click.option("--rebuild", is_flag=True, help="Compile the kernels again from the artifact's IR and compare bytes.")
@click.option("--signature", metavar="F", help="A detached signature to check.")
@click.option("--public-key", metavar="F", help="The public key of the signer.")
@as_json
@debug
def command(artifact: str, rebuild: bool, signature: str | None, public_key: str | None, as_json: bool) -> None:
    """Check every hash, the manifest and the canary; with --rebuild also that the kernels are what the sources say."""
    from ..runtime.artifact import open_artifact
    from ..runtime.verify import check_canary, check_hashes, check_signature

    if (signature is None) != (public_key is None):
        raise UsageError("--signature and --public-key go together")
    with open_artifact(artifact) as opened:
        checks = check_hashes(opened)
        if signature is not None and public_key is not None:
            checks.append(check_signature(Path(artifact), Path(signature), Path(public_key)))
        if rebuild:
            from ..rebuild import check_rebuild

            checks += check_rebuild(opened)
        if all(c.ok for c in checks):  # nothing of the file runs before everything else is right
            checks += check_canary(opened)
    failed = [c for c in checks if not c.ok]
    if as_json:
        emit({"ok": not failed, "checks": [asdict(c) for c in checks]})
        if failed:
            raise click.exceptions.Exit(1)
        return
    for check in checks:
        click.echo(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
    if failed:
        raise GateFailed(f"{failed[0].name}: {failed[0].detail}", "do not use this file")
