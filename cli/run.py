"""llmc run: serve an artifact."""

from __future__ import annotations

from pathlib import Path

import click

from .options import debug, machine


@click.command("run", epilog="Example: llmc run smollm2.llmc --port 8000 --max-batch 100")
@click.argument("artifact", metavar="OUT.llmc")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0 picks one.")
@click.option(
    "--kv-cache",
    metavar="SIZE",
    help="Bytes for the key/value cache, such as 2GiB (default: for --max-batch requests, within half of the free memory).",
)
@click.option("--max-batch", type=int, metavar="N", help="Requests computed at once.  [default: 64]")
@click.option("--served-model-name", metavar="NAME", help="The model's id (default: the file's name without its ending).")
@click.option(
    "--api-key", metavar="KEY", envvar="LLMC_API_KEY", help="Key that requests must carry (or LLMC_API_KEY); /health needs none."
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time that running requests have to finish after SIGTERM.",
)
@click.option("--verify", is_flag=True, help="Check every hash, the weights' too, and the canary, before serving.")
@machine
@debug
def command(
    artifact: str,
    host: str,
    port: int,
    kv_cache: str | None,
    max_batch: int | None,
    served_model_name: str | None,
    api_key: str | None,
    drain: float,
    verify: bool,
    threads: int | None,
    target: str,
    isa: str,
    portable: bool,
) -> None:
    """Serve an artifact with an OpenAI-compatible API. Prints `ready http://HOST:PORT` when requests will be answered."""
    from ..runtime.api import load
    from ..runtime.server.app import Server
    from ..runtime.server.serve import bind, serve

    listener = bind(host, port)
    if verify:
        _verify(artifact)
    with load(
        artifact, threads=threads, kv_cache=kv_cache, max_batch=max_batch, target=target, isa=isa, portable=portable
    ) as model:
        name = served_model_name or Path(artifact).stem
        click.echo(
            f"{name}: {model.config.target}, {model.config.threads} threads, {model.config.blocks * 32} positions of cache, {model.config.max_batch} requests at once",
            err=True,
        )
        for note in model.config.notes:
            click.echo(f"note: {note}", err=True)
        if model.tokenizer.available:
            _ = model.tokenizer.inner
        serve(Server(model, name, api_key or ""), listener, drain)


def _verify(path: str) -> None:
    from ..errors import GateFailed
    from ..runtime.artifact import open_artifact
    from ..runtime.verify import check_canary, check_hashes

    with open_artifact(path) as opened:
        for check in (*check_hashes(opened), *check_canary(opened)):
            if not check.ok:
                raise GateFailed(f"{check.name}: {check.detail}", "do not serve this file")
