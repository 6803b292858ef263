"""Which levels a CPU runs: by its flags, and tiles only where the kernel grants them."""

from __future__ import annotations

import builtins
import io
import platform

import pytest
from llmc.runtime import cpu_info

FLAGS = {name: " ".join(sorted(needs)) for name, needs in (("v3", cpu_info.V3), ("v4", cpu_info.V4), ("amx", cpu_info.AMX))}


@pytest.fixture
def levels(monkeypatch):
    """The levels of a machine whose CPU has these flags."""

    def ask(flags, machine="x86_64", *, granted=True):
        text = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {flags} sse\n"
        opened = builtins.open
        fake = lambda path, *rest, **more: io.StringIO(text) if path == "/proc/cpuinfo" else opened(path, *rest, **more)  # noqa: E731
        monkeypatch.setattr(builtins, "open", fake)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(cpu_info, "_tiles_permitted", lambda: granted)
        return cpu_info.available_levels.__wrapped__()

    return ask


def test_levels_follow_from_flags(levels):
    assert levels("") == ()
    assert levels(FLAGS["v3"]) == ("x86-64-v3",)
    assert levels(FLAGS["v4"]) == ("x86-64-v4", "x86-64-v3")
    assert levels(FLAGS["amx"]) == ("x86-64-amx", "x86-64-v4", "x86-64-v3")
    assert levels("asimddp asimdhp", "aarch64") == ("aarch64",)
    assert levels("asimdhp", "aarch64") == () == levels(FLAGS["amx"], "riscv64")


def test_a_sandbox_that_grants_no_tiles_runs_the_level_below(levels):
    assert levels(FLAGS["amx"], granted=False) == ("x86-64-v4", "x86-64-v3")


def test_the_kernel_is_asked_for_tiles():
    assert cpu_info._tiles_permitted() in (True, False)
    if "x86-64-amx" in cpu_info.available_levels():
        assert cpu_info._tiles_permitted()
