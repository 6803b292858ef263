"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on standard output.")
debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


def machine(command: F) -> F:
    """--threads, --target, --isa and --portable: where, how wide and by which arithmetic to run."""
    for option in (
        click.option(
            "--portable",
            is_flag=True,
            help="Keep bfloat16 products to the arithmetic of all levels: the same bits everywhere, slower on x86-64-v4.",
        ),
        click.option(
            "--isa",
            default="",
            metavar="LEVEL",
            help="Instruction-set level: x86-64-v3, x86-64-v4, x86-64-amx or aarch64 (default: the best that the file and this CPU have).",
        ),
        click.option(
            "--target",
            default="",
            metavar="NAME",
            help="Target of the file to run on, such as cpu (default: what this machine has).",
        ),
        click.option("--threads", type=click.IntRange(1, 256), help="Threads (default: the CPUs that this process may use)."),
    ):
        command = option(command)
    return command


def compiling(command: F) -> F:
    """The options that decide an artifact's bytes."""
    for option in reversed(
        (
            click.option(
                "--quant",
                default="none",
                metavar="SCHEME",
                show_default=True,
                help="Scheme of the linears: none keeps what the checkpoint has; bf16, f16, f32, int8, int4, int4:g32:asym/int8, …",
            ),
            click.option(
                "--scheme",
                multiple=True,
                metavar="GLOB=SCHEME",
                help="Scheme of the modules that match; repeatable, the last match wins.",
            ),
            click.option(
                "--activations",
                default="",
                metavar="DTYPE",
                help="Activations of quantized linears: bf16 or int8 (overrides what follows the / in a scheme).",
            ),
            click.option(
                "--group-size", type=int, default=0, metavar="N", help="Values of K that share a scale (overrides the scheme's)."
            ),
            click.option("--asymmetric", is_flag=True, help="Give quantized weights zero points."),
            click.option(
                "--algorithm",
                default="rtn",
                show_default=True,
                metavar="NAME",
                help="How codes are chosen: rtn (round to nearest), gptq, gptq-plain, awq, smoothquant, rotate, or several joined: rotate+awq+gptq; or TOOL:METHOD, such as gptqmodel:awq.",
            ),
            click.option(
                "--offload", is_flag=True, help="Keep a calibration's activations in files of --work DIR, not in memory."
            ),
            click.option(
                "--tool-python",
                default="",
                metavar="PYTHON",
                help="The interpreter that has the TOOL of --algorithm (default: llmc's own).",
            ),
            click.option(
                "--calibration",
                default="",
                metavar="FILE",
                help="Text for gptq, awq, smoothquant and --quant auto: a text file or .jsonl (default: a text of llmc's own).",
            ),
            click.option(
                "--work",
                default="",
                metavar="DIR",
                help="Keep a calibration's state in DIR: one that was killed goes on from there.",
            ),
            click.option(
                "--dtype",
                default="auto",
                show_default=True,
                metavar="DTYPE",
                help="Activations, norms and unquantized weights: auto, f32, f16 or bf16.",
            ),
            click.option(
                "--kv-dtype",
                default="auto",
                show_default=True,
                metavar="DTYPE",
                help="Key/value cache: auto (as the checkpoint asks; int16 for bf16 without a GPU target; or --dtype), f32, f16, bf16, int16, int8 or fp8.",
            ),
            click.option("--context", type=int, default=0, metavar="N", help="Positions served (default: the model's maximum)."),
            click.option("--trust-remote-code", is_flag=True, help="Run Python code that the checkpoint brings. Read it first."),
        )
    ):
        command = option(command)
    return command
