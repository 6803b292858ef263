"""NVIDIA devices, through libcuda."""

from __future__ import annotations

from .native import CUDA, Library, NativeDriver


def probe() -> str:
    """The first device's architecture; raises EnvironmentLacks when there is none."""
    return Library(CUDA).arch()


def open_driver() -> NativeDriver:
    return NativeDriver(CUDA)


def runs(binary: str, device: str) -> bool:
    """Whether code for one architecture runs on another: a cubin runs on later chips of its own generation."""
    made, here = int(binary[3:]), int(device[3:])
    return made // 10 == here // 10 and made <= here
