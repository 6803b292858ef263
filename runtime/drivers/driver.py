"""What the launch executor needs of a device. Addresses are plain integers; everything runs in the order in which it is asked for."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Driver(Protocol):
    """One device. Owns its memory and modules until `close()`."""

    arch: str

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of zeros, aligned to 256. Raises EnvironmentLacks when there is no room."""

    def free(self, address: int) -> None: ...

    def upload(self, address: int, data: memoryview) -> None:
        """Copy bytes of this process to the device; `data` may be reused afterwards."""

    def download(self, address: int, out: Array) -> None:
        """Fill a contiguous array with bytes of the device, after all work before it."""

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy on the device."""

    def load(self, binary: bytes, facts: dict[str, Any]) -> Any:
        """A kernel, ready to be launched; `facts` is its entry in the plan."""

    def launch(self, kernel: Any, grid: tuple[int, int, int], arguments: list[int]) -> None: ...

    def record(self) -> bool:
        """Begin to record launches instead of running them; False where the device cannot."""

    def recorded(self) -> Any:
        """End recording: what was recorded, for `replay`."""

    def replay(self, recording: Any) -> None: ...

    def synchronize(self) -> None: ...

    def free_bytes(self) -> int:
        """Memory of the device that nobody uses."""

    def close(self) -> None: ...


def as_bytes(array: Array) -> memoryview:
    """A contiguous array as bytes."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
