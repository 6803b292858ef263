"""llmc explain: which kernel runs each node, and why not a faster one."""

from __future__ import annotations

import click

from .main import emit
from .options import as_json, debug


@click.command("explain", epilog="Example: llmc explain smollm2.llmc")
@click.argument("artifact", metavar="OUT.llmc")
@as_json
@debug
def command(artifact: str, as_json: bool) -> None:
    """Node by node: the kernel, the scheme, bytes and operations a token, and what runs on generic kernels."""
    from ..runtime.artifact import open_artifact

    with open_artifact(artifact) as opened:
        manifest = opened.manifest
    reasons = {(f["module"], f["op"]): f["reason"] for f in manifest["fallbacks"]}
    targets = manifest["targets"]
    kernels = targets[0]["kernels"] if targets else []
    if as_json:
        emit({"targets": [t["name"] for t in targets], "kernels": kernels, "fallbacks": manifest["fallbacks"]})
        return
    click.echo(f"{'calls':>6} {'weight bytes':>13} {'operations':>12}  kernel (operations and bytes a call, one token)")
    for kernel in kernels:
        click.echo(
            f"{kernel['calls']:6} {kernel['weight_bytes']:13} {kernel['operations']:12}  {kernel['name']}{' ' + kernel['scheme'] if kernel['scheme'] else ''}"
        )
    total = sum(k["calls"] * k["weight_bytes"] for k in kernels)
    click.echo(
        f"{sum(k['calls'] for k in kernels):6} {total:13} {sum(k['calls'] * k['operations'] for k in kernels):12}  a step of one token"
    )
    if reasons:
        click.echo("generic kernels:")
        for (module, op), reason in sorted(reasons.items()):
            click.echo(f"  {op} in {module or 'the model'}: {reason}")
    else:
        click.echo("nothing runs on generic kernels")
