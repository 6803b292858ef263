"""llmc inspect: what an artifact holds."""

from __future__ import annotations

import click

from .main import emit
from .options import as_json, debug


@click.command("inspect", epilog="Example: llmc inspect smollm2.llmc --json")
@click.argument("artifact", metavar="OUT.llmc")
@as_json
@debug
def command(artifact: str, as_json: bool) -> None:
    """Show an artifact's model, targets, schemes, memory plan, check and members."""
    from ..runtime.artifact import open_artifact
    from ..runtime.plan import memory_table
    from ..runtime.sizes import show_size

    with open_artifact(artifact) as opened:
        manifest = opened.manifest
        value = {
            "schema": manifest["schema"],
            "llmc": manifest["llmc"],
            "source": manifest["source"],
            "toolchain": manifest["toolchain"],
            "model": manifest["model"],
            "targets": manifest["targets"],
            "quant": manifest["quant"],
            "recipe": manifest["recipe"],
            "memory": memory_table(manifest),
            "conformance": manifest["conformance"],
            "fallbacks": manifest["fallbacks"],
            "notes": manifest["notes"],
            "members": manifest["members"],
        }
    if as_json:
        emit(value)
        return
    model, tools = (
        manifest["model"],
        ", ".join(manifest["toolchain"][k] for k in ("compiler", "triton", "hip") if k in manifest["toolchain"]),
    )
    click.echo(
        f"{model['architecture']}: {model['parameters'] / 1e6:.1f} M parameters, {model['context']} positions, vocabulary {model['vocab']}, {model['dtype']}, cache {model['kv_dtype']}"
    )
    click.echo(f"source {manifest['source']['sha256'][:16]}…, made by llmc {manifest['llmc']} with {tools}")
    for glob, scheme in manifest["quant"].items():
        click.echo(f"  {glob}: {scheme}")
    for target in manifest["targets"]:
        first = target.get("first")
        before = f"; the {first['layers']} layers before its own run on the CPU ({', '.join(first['levels'])})" if first else ""
        click.echo(f"target {target['name']}: {show_size(target['bytes'])}, {len(target['kernels'])} kernels{before}")
        for kernel in target["kernels"]:
            if "registers" in kernel:
                facts = f"{kernel['registers']} registers, {kernel['shared_bytes']} bytes shared, {kernel['threads']} threads"
                click.echo(f"  {kernel['target']} {kernel['kernel']}: {facts}, {show_size(kernel['bytes'])}")
    check = manifest["conformance"]
    click.echo(
        f"check: {check}"
        if "skipped" in check
        else f"check: mean KL {check['kl_mean']}, p99 {check['kl_p99']}, top-1 {check['top1']}, largest error {check['max_abs']}"
    )
    click.echo("memory (requests × context):")
    for row in value["memory"]:
        click.echo(f"  {row['requests']:4} × {row['context']:7}: {show_size(row['bytes'])}")
    for note in manifest["notes"]:
        click.echo(f"note: {note}")
    for member in manifest["members"]:
        click.echo(f"  {member['bytes']:12}  {member['sha256'][:16]}…  {member['name']}")
