"""llmc bench: how fast an artifact runs here, and how near to what the machine allows."""

from __future__ import annotations

from typing import Any

import click

from ..errors import UsageError
from .main import emit
from .options import as_json, debug, machine


@click.command("bench", epilog="Example: llmc bench smollm2.llmc --concurrency 1,8,32 --profile")
@click.argument("artifact", metavar="OUT.llmc")
@click.option(
    "--prompt-len", type=click.IntRange(min=1), default=512, show_default=True, help="Prompt tokens of the single request."
)
@click.option("--gen-len", type=click.IntRange(min=2), default=128, show_default=True, help="Tokens that it generates.")
@click.option("--concurrency", default="1,8,32", show_default=True, metavar="N,N", help="Numbers of requests at once.")
@click.option(
    "--concurrent-prompt-len",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Prompt tokens of concurrent requests.",
)
@click.option(
    "--concurrent-gen-len", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens that each generates."
)
@click.option("--reps", type=click.IntRange(min=1), default=5, show_default=True, help="Repetitions; medians are reported.")
@click.option("--profile", is_flag=True, help="Time each kernel and compare it with its floor.")
@machine
@as_json
@debug
def command(
    artifact: str,
    prompt_len: int,
    gen_len: int,
    concurrency: str,
    concurrent_prompt_len: int,
    concurrent_gen_len: int,
    reps: int,
    profile: bool,
    threads: int | None,
    target: str,
    isa: str,
    portable: bool,
    as_json: bool,
) -> None:
    """Measure prefill, decode, concurrent requests, start-up and memory, beside the machine's own ceilings."""
    from ..runtime.bench import BenchSettings, run_bench

    try:
        counts = [int(c) for c in concurrency.split(",") if c.strip()]
    except ValueError as error:
        raise UsageError(f"--concurrency {concurrency!r} is not a list of numbers", "write 1,8,32") from error
    if not all(1 <= c <= 4096 for c in counts):
        raise UsageError(f"--concurrency {concurrency!r}: numbers lie between 1 and 4096")
    settings = BenchSettings(prompt_len, gen_len, tuple(counts), concurrent_prompt_len, concurrent_gen_len, reps, profile)
    result = run_bench(artifact, settings, threads=threads, target=target, isa=isa, portable=portable, quiet=as_json)
    if as_json:
        emit(result)
        return
    _show(result)


def _show(result: dict[str, Any]) -> None:
    def figure(value: dict[str, float], unit: str) -> str:
        return f"{value['median']:10.1f} {unit}  ({value['min']:.1f} to {value['max']:.1f})"

    floor, ceilings = result["floor"], result["ceilings"]
    click.echo(
        f"prefill          {figure(result['prefill_tok_s'], 'tok/s')}  {100 * result['prefill_tok_s']['median'] / floor['prefill_tok_s']:.0f} % of the floor"
    )
    click.echo(
        f"decode           {figure(result['decode_tok_s'], 'tok/s')}  {100 * result['decode_tok_s']['median'] / floor['decode_tok_s']:.0f} % of the floor"
    )
    for row in result["concurrent"]:
        click.echo(
            f"{row['n']:4} at once     {figure(row['output_tok_s'], 'tok/s')}  {100 * row['output_tok_s']['median'] / row['floor_tok_s']:.0f} % of the floor, first token p50 {row['ttft_p50_s']['median']:.3f} s, between tokens p50 {1000 * row['itl_p50_s']['median']:.1f} ms, p99 {1000 * row['itl_p99_s']['median']:.1f} ms"
        )
    click.echo(f"start to first   {figure(result['start_to_first_token_s'], 's')}")
    click.echo(f"peak memory      {result['peak_rss_bytes']['median'] / 2**20:10.1f} MiB")
    click.echo(
        f"ceilings here    read {ceilings['read_gb_s']:.1f} GB/s, int8 {ceilings['int8_gop_s']:.0f} GOP/s, bf16 {ceilings['bf16_gflop_s']:.0f} GFLOP/s"
    )
    work = ""
    for row in result.get("profile", []):
        if row["work"] != work:
            work = row["work"]
            click.echo(f"\n{work}, a step:")
        click.echo(
            f"{row['share'] * 100:5.1f} %  {row['seconds'] * 1e6:9.1f} us  {row['fraction_of_floor'] * 100:4.0f} % of floor  {row['kernel']}"
        )
