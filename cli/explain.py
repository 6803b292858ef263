"""llmc explain: which kernel runs each node, and why not a faster one."""

from __future__ import annotations

from typing import Any

import click

from ..errors import EnvironmentLacks
from .main import emit
from .options import as_json, debug


@click.command("explain", epilog="Example: llmc explain smollm2.llmc")
@click.argument("artifact", metavar="OUT.llmc")
@click.option("--target", default="", metavar="NAME", help="Target of the file to explain (default: the first).")
@as_json
@debug
def command(artifact: str, target: str, as_json: bool) -> None:
    """Node by node: the module, its kernel and scheme, bytes of weights and operations a token, and why not a faster kernel."""
    from ..runtime.artifact import open_artifact

    with open_artifact(artifact) as opened:
        manifest = opened.manifest
    names = [t["name"] for t in manifest["targets"]]
    if target and target not in names:
        raise EnvironmentLacks(f"{artifact} holds no target {target}", f"it holds {', '.join(names) or 'none'}")
    chosen = names.index(target) if target else 0
    entry = manifest["targets"][chosen] if names else {"kernels": []}
    kernels = [*(entry.get("first") or {"kernels": []})["kernels"], *entry["kernels"]]
    nodes = _nodes(kernels, manifest["fallbacks"])
    if as_json:
        emit(
            {
                "targets": names,
                "target": names[chosen] if names else None,
                "nodes": nodes,
                "kernels": kernels,
                "fallbacks": manifest["fallbacks"],
            }
        )
        return
    click.echo(f"{'weight bytes':>13} {'operations':>12}  module: kernel, scheme (a call, one token)")
    for node in nodes:
        click.echo(
            f"{node['weight_bytes']:13} {node['operations']:12}  {node['module'] or 'the model'}: {node['kernel']}{' ' + node['scheme'] if node['scheme'] else ''}"
        )
    total = sum(n["weight_bytes"] for n in nodes)
    click.echo(f"{total:13} {sum(n['operations'] for n in nodes):12}  a step of one token, {len(nodes)} calls")
    reasons: dict[str, list[str]] = {}
    for node in nodes:
        if node["reason"]:
            reasons.setdefault(node["reason"], []).append(node["module"] or "the model")
    click.echo("why not faster:" if reasons else "nothing runs on generic or slower kernels")
    for reason, modules in reasons.items():
        more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
        click.echo(f"  {reason}: {', '.join(modules[:3])}{more}")


def _nodes(kernels: list[dict[str, Any]], fallbacks: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One entry a call, by module; a generic loop's reason is its fallback's."""
    generic: dict[str, str] = {}
    for item in fallbacks:
        generic[item["module"]] = f"{item['op']} {item['reason']}"
    fields = ("kernel", "scheme", "weight_bytes", "operations")
    found = []
    for kernel in kernels:
        for module in kernel.get("modules") or [""] * kernel["calls"]:
            loop = (
                ""
                if kernel["scheme"] or kernel["kernel"].startswith(("attend", "norm", "rope_table", "embed"))
                else generic.get(module, "")
            )
            found.append({"module": module, **{f: kernel[f] for f in fields}, "reason": kernel.get("reason") or loop})
    return found
