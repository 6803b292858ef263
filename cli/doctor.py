"""llmc doctor: what this machine can compile for and run, and what is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from ..errors import EnvironmentLacks
from ..runtime.cpu_info import available_levels, usable_cpus
from ..runtime.executors.choose import FAMILIES, driver_module
from ..version import VERSION
from .main import emit
from .options import as_json, debug

COMPILE = ("torch", "transformers", "ziglang", "triton", "safetensors", "gguf", "pyyaml", "jsonschema", "tqdm")
SIGN = ("model-signing", "pyOpenSSL")


@click.command("doctor")
@as_json
@debug
def command(as_json: bool) -> None:
    """Say what this machine can compile for and run, and what is missing."""
    found = {name: _version(name) for name in (*COMPILE, *SIGN)}
    missing = [name for name in COMPILE if not found[name]]
    devices, absent = _devices()
    runs = [f"cpu:{level}" for level in available_levels()] + devices
    compiles = [] if missing else ["cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:x86-64-amx", "cpu:aarch64", *_gpus()]
    value = {
        "llmc": VERSION, "python": platform.python_version(), "machine": platform.machine(), "libc": " ".join(platform.libc_ver()), "threads": usable_cpus(),
        "runs": runs, "devices": {**dict.fromkeys(devices, ""), **absent}, "compiles": compiles, "packages": found, "missing": missing,
    }  # fmt: skip
    if as_json:
        emit(value)
        return
    click.echo(f"llmc {VERSION}, Python {value['python']}, {value['machine']}, {value['libc']}, {value['threads']} threads")
    click.echo(f"runs:     {', '.join(runs) or 'nothing: this CPU has none of the known levels'}")
    for family, why in absent.items():
        click.echo(f"no {family}:  {why}")
    click.echo(f"compiles: {', '.join(compiles) or 'nothing: ' + ', '.join(missing) + ' missing (install the `compile` extra)'}")
    click.echo(f"signs:    {'yes' if all(found[p] for p in SIGN) else 'no: install the `sign` extra'}")


def _gpus() -> list[str]:
    from ..codegen.triton.target import TARGETS

    return list(TARGETS)


def _devices() -> tuple[list[str], dict[str, str]]:
    """The first device of each family, and why there is none of the others."""
    found: list[str] = []
    absent: dict[str, str] = {}
    for family in FAMILIES:
        try:
            found.append(f"{family}:{driver_module(family).probe()}")
        except EnvironmentLacks as error:
            absent[family] = error.message
    return found, absent


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
