"""HIP kernels on this CPU, for tests: compiled as C++ with a fiber for each work-item."""

from __future__ import annotations

import ctypes
import os
from _ctypes import dlclose
from typing import Any

from .build import emulated


class Emulator:
    """The kernels of one artifact, or of a test. `sources`: their texts and headers by file name; `wave`: lanes of a wave."""

    def __init__(self, sources: dict[str, str], wave: int) -> None:
        self._handle = os.memfd_create("llmc-emulated")
        os.write(self._handle, emulated(sources, wave))
        self._library = ctypes.CDLL(f"/proc/self/fd/{self._handle}")

    def launch(self, facts: dict[str, Any], grid: tuple[int, int, int], arguments: list[int]) -> None:
        """Run a kernel, `facts` its entry in the plan, over a grid; arguments are addresses and integers."""
        held = (ctypes.c_uint64 * len(arguments))(*[a & (2**64 - 1) for a in arguments])
        places = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(held) + 8 * i for i in range(len(arguments))])
        getattr(self._library, f"emulate_{facts['symbol']}")((ctypes.c_int * 3)(*grid), places)

    def close(self) -> None:
        dlclose(self._library._handle)  # the loader knows libraries by path, and this one is the descriptor's number
        os.close(self._handle)
