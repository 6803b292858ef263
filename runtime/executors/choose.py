"""Which of an artifact's targets runs here."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from ...errors import EnvironmentLacks, UsageError, nearest
from ..artifact import Artifact
from .cpu import choose_level

FAMILIES = {"cuda": "cuda", "rocm": "hip"}


def is_gpu(target: str) -> bool:
    """Whether a target's name is a GPU's."""
    return target.partition(":")[0] in FAMILIES


def target_entry(artifact: Artifact, target: str) -> dict[str, Any]:
    """What the manifest says of a target."""
    return next(t for t in artifact.manifest["targets"] if t["name"] == target)


def driver_module(family: str) -> ModuleType:
    """The drivers of a GPU family."""
    return importlib.import_module(f"..drivers.{FAMILIES[family]}", __package__)


def choose_target(artifact: Artifact, wanted: str = "", isa: str = "") -> str:
    """The target to run: `wanted` (a family or a whole name), or a GPU that the file has code for, or the fastest CPU level.

    Raises UsageError for a name that is none, EnvironmentLacks for what the file or the machine has not.
    """
    names = [t["name"] for t in artifact.manifest["targets"]]
    family, _, detail = wanted.partition(":")
    if wanted and family not in (*FAMILIES, "cpu"):
        raise UsageError(f"unknown target {wanted!r}", nearest(wanted, [*names, "cpu", *FAMILIES]))
    if isa and wanted and family != "cpu":
        raise UsageError(f"--isa names a level of CPUs, --target {wanted}", "give one of them")
    if family == "cpu" or isa:
        return f"cpu:{choose_level(artifact, isa or detail)}"
    held = [n for n in names if is_gpu(n) and (not wanted or n == wanted or n.partition(":")[0] == wanted)]
    if wanted and not held:
        raise EnvironmentLacks(f"{artifact.path.name} holds no kernels for {wanted}", f"it holds {', '.join(names) or 'none'}")
    reason: EnvironmentLacks | None = None
    for group in dict.fromkeys(n.partition(":")[0] for n in held):
        module = driver_module(group)
        try:
            device = module.probe()
        except EnvironmentLacks as error:
            reason = error
            continue
        fitting = [n for n in held if n.startswith(f"{group}:") and module.runs(n.partition(":")[2], device)]
        if fitting:
            return max(fitting)
        reason = EnvironmentLacks(
            f"this machine has {group}:{device}, {artifact.path.name} holds {', '.join(n for n in held if n.startswith(group))}",
            f"compile it with --target {group}:{device}",
        )
    if wanted or not any(n.startswith("cpu:") for n in names):
        raise reason or EnvironmentLacks(f"{artifact.path.name} holds no target", "compile it again")
    return f"cpu:{choose_level(artifact)}"


def device_free_bytes(target: str) -> int:
    """Memory that is free on the device of a GPU target."""
    driver = driver_module(target.partition(":")[0]).open_driver()
    try:
        return int(driver.free_bytes())
    finally:
        driver.close()
