"""AMD devices, through libamdhip64."""

from __future__ import annotations

from .native import HIP, Library, NativeDriver


def probe() -> str:
    """The first device's architecture; raises EnvironmentLacks when there is none."""
    return Library(HIP).arch()


def open_driver() -> NativeDriver:
    return NativeDriver(HIP)


def runs(binary: str, device: str) -> bool:
    """Whether code for one architecture runs on another: only on the same."""
    return binary == device
