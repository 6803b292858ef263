"""The command line: one file a command, found by name and imported when it is called."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
import traceback
from functools import cache
from typing import Any

import click

from ..errors import LlmcError, interrupts, nearest
from ..version import VERSION

COMMANDS = (
    "compile",
    "run",
    "generate",
    "chat",
    "eval",
    "bench",
    "inspect",
    "verify",
    "sign",
    "opt",
    "explain",
    "export",
    "tune",
    "doctor",
)


class Commands(click.Group):
    """A group whose commands are the modules of this folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f".{name}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"unknown command {args[0]!r}; {nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="llmc")
def cli() -> None:
    """Compile a language model to one file, and serve that file.

    \b
    Examples:
      llmc compile ./SmolLM2-135M -o smollm2.llmc --quant int4
      llmc run smollm2.llmc --port 8000
      llmc generate smollm2.llmc --prompt "Once upon a time"
    """


def main(args: list[str] | None = None) -> None:
    """Entry point: runs a command and exits with the status that docs/cli.md gives."""
    interrupts.install()
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: list[str]) -> int:
    """Run a command; errors become a message (an object with --json) and a status, never a traceback."""
    as_json, debug = "--json" in args, "--debug" in args
    args = [a for a in args if a != "--debug"]
    try:
        if sys.platform != "linux":
            from ..errors import EnvironmentLacks

            raise EnvironmentLacks(f"llmc runs on Linux (x86-64 and aarch64), not on {sys.platform}")
        result = cli.main(args, prog_name="llmc", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LlmcError as error:
        if debug:
            traceback.print_exc()
        return _fail(as_json, type(error).__name__, error.message, error.hint, error.exit_status)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _fail(as_json, "UsageError", _click_message(error), "llmc COMMAND --help lists the options", 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail(as_json, "Interrupted", "interrupted", "", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail(as_json, "EnvironmentLacks", "not enough memory", "free some, or give smaller settings", 5)
    except ModuleNotFoundError as error:
        if debug:
            traceback.print_exc()
        return _fail(as_json, "EnvironmentLacks", f"the package {error.name} is not installed", _extra_hint(), 5)
    except OSError as error:
        if debug:
            traceback.print_exc()
        return _fail(
            as_json, "EnvironmentLacks", f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", "", 5
        )
    except Exception as error:  # the last resort: a bug must not show a traceback unless it is asked for
        if debug:
            traceback.print_exc()
        return _fail(
            as_json,
            "InternalError",
            f"a bug in llmc: {type(error).__name__}: {error}",
            "run again with --debug and report what it prints",
            70,
        )


def _click_message(error: click.ClickException) -> str:
    message = error.format_message()
    return message[:1].lower() + message[1:]


def _extra_hint() -> str:
    """How to install what compiling needs, under the name that this distribution has."""
    from importlib.metadata import packages_distributions

    name = (packages_distributions().get("llmc") or ["this package"])[0]
    return f"pip install '{name}[compile]' brings what compiling needs"


def _fail(as_json: bool, kind: str, message: str, hint: str, status: int) -> int:
    if as_json:
        click.echo(json.dumps({"error": {"type": kind, "message": message, "hint": hint}, "exit": status}))
    else:
        click.echo(f"error: {message}" + (f"\n  hint: {hint}" if hint else ""), err=True)
    return status


def emit(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output; numbers that JSON has not are null."""
    click.echo(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def process_age_s() -> float:
    """Seconds since this process was started: the kernel's clock (10 ms steps) once, a finer one from then on."""
    return time.perf_counter() - _started()


@cache
def _started() -> float:
    """When this process was started, on the clock of `perf_counter`."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter() - (float(uptime.read().split()[0]) - started)
