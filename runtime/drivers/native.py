"""CUDA and HIP through ctypes on the driver's own library: no toolkit, no bindings package. The two differ in names alone."""

from __future__ import annotations

import ctypes as c
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ...errors import EnvironmentLacks
from .driver import Array

POINTER, SIZE, INT, UINT = c.c_void_p, c.c_size_t, c.c_int, c.c_uint


@dataclass(frozen=True)
class Names:
    """A vendor's library and what it calls each function; `attributes` numbers the device's and a function's properties."""

    family: str
    libraries: tuple[str, ...]
    functions: dict[str, str]
    major: int
    minor: int
    max_shared: int
    capture_mode: int = 0


CUDA = Names(
    "cuda",
    ("libcuda.so.1",),
    {
        "init": "cuInit", "count": "cuDeviceGetCount", "device": "cuDeviceGet", "attribute": "cuDeviceGetAttribute", "retain": "cuDevicePrimaryCtxRetain",
        "current": "cuCtxSetCurrent", "release": "cuDevicePrimaryCtxRelease_v2", "alloc": "cuMemAlloc_v2", "free": "cuMemFree_v2",
        "set": "cuMemsetD8Async", "to_device": "cuMemcpyHtoDAsync_v2", "to_host": "cuMemcpyDtoHAsync_v2", "within": "cuMemcpyDtoDAsync_v2", "memory": "cuMemGetInfo_v2",
        "load": "cuModuleLoadData", "function": "cuModuleGetFunction", "limit": "cuFuncSetAttribute", "launch": "cuLaunchKernel", "launch_after": "cuLaunchKernelEx", "stream": "cuStreamCreate",
        "wait": "cuStreamSynchronize", "begin": "cuStreamBeginCapture_v2", "end": "cuStreamEndCapture", "instantiate": "cuGraphInstantiateWithFlags",
        "graph": "cuGraphLaunch", "host": "cuMemHostAlloc", "free_host": "cuMemFreeHost", "error": "cuGetErrorString", "unload": "cuModuleUnload", "destroy_stream": "cuStreamDestroy_v2",
    },
    75, 76, 8,
)  # fmt: skip
HIP = Names(
    "rocm",
    ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"),
    {
        "init": "hipInit", "count": "hipGetDeviceCount", "device": "hipDeviceGet", "attribute": "hipDeviceGetAttribute", "current": "hipSetDevice",
        "alloc": "hipMalloc", "free": "hipFree", "set": "hipMemsetD8Async", "to_device": "hipMemcpyHtoDAsync",
        "to_host": "hipMemcpyDtoHAsync", "within": "hipMemcpyDtoDAsync", "memory": "hipMemGetInfo", "load": "hipModuleLoadData", "function": "hipModuleGetFunction",
        "limit": "hipFuncSetAttribute", "launch": "hipModuleLaunchKernel", "stream": "hipStreamCreate", "wait": "hipStreamSynchronize",
        "begin": "hipStreamBeginCapture", "end": "hipStreamEndCapture", "instantiate": "hipGraphInstantiateWithFlags", "graph": "hipGraphLaunch",
        "host": "hipHostMalloc", "free_host": "hipHostFree", "error": "hipDrvGetErrorString", "unload": "hipModuleUnload", "destroy_stream": "hipStreamDestroy",
    },
    0, 0, 8,
)  # fmt: skip
ARGUMENTS: dict[str, list[Any]] = {
    "init": [UINT], "count": [POINTER], "device": [POINTER, INT], "attribute": [POINTER, INT, INT], "retain": [POINTER, INT], "current": [POINTER], "release": [INT],
    "alloc": [POINTER, SIZE], "free": [POINTER], "set": [POINTER, c.c_ubyte, SIZE, POINTER], "to_device": [POINTER, POINTER, SIZE, POINTER],
    "to_host": [POINTER, POINTER, SIZE, POINTER], "within": [POINTER, POINTER, SIZE, POINTER], "memory": [POINTER, POINTER], "load": [POINTER, POINTER],
    "function": [POINTER, POINTER, c.c_char_p], "limit": [POINTER, INT, INT], "launch": [POINTER, *[UINT] * 7, POINTER, POINTER, POINTER], "launch_after": [POINTER, POINTER, POINTER, POINTER], "stream": [POINTER, UINT],
    "wait": [POINTER], "begin": [POINTER, INT], "end": [POINTER, POINTER], "instantiate": [POINTER, POINTER, c.c_ulonglong], "graph": [POINTER, POINTER],
    "host": [POINTER, SIZE, UINT], "free_host": [POINTER], "error": [INT, POINTER], "unload": [POINTER], "destroy_stream": [POINTER],
}  # fmt: skip
LARGE_SHARED = 48 * 1024
SCRATCH_BYTES = 1 << 20
PIECE, COPIERS = 8 << 20, 4
"""Large uploads go in pieces of so many bytes through pinned memory, by so many threads: one alone copies slower than the bus."""
PROGRAMMATIC = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: a kernel may begin while the one before it ends."""


class _Attribute(c.Structure):
    _fields_ = [("id", INT), ("pad", INT), ("value", INT), ("rest", INT * 15)]


class _Config(c.Structure):
    """CUlaunchConfig."""

    _fields_ = [("sizes", UINT * 7), ("stream", POINTER), ("attributes", POINTER), ("count", UINT)]


class Library:
    """A vendor's driver library. Raises EnvironmentLacks when it is not there, or knows no device."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._library = _open(names)
        for key, name in names.functions.items():
            try:
                found = getattr(self._library, name)
            except AttributeError as error:
                raise EnvironmentLacks(
                    f"the {names.family} driver has no {name}: it is too old", "install a newer driver"
                ) from error
            found.restype, found.argtypes = INT, ARGUMENTS[key] if key != "stream" or names.family == "cuda" else [POINTER]
        if names.family == "rocm":
            self._library.hipSetDevice.argtypes = [INT]
        self.check("init", 0)
        count = INT()
        self.check("count", c.byref(count))
        if count.value < 1:
            raise EnvironmentLacks(f"the {names.family} driver sees no device")

    def call(self, key: str, *arguments: Any) -> int:
        return int(getattr(self._library, self.names.functions[key])(*arguments))

    def check(self, key: str, *arguments: Any) -> None:
        """Call, and raise EnvironmentLacks with the driver's own words when it fails."""
        code = self.call(key, *arguments)
        if code:
            text = c.c_char_p()
            self.call("error", code, c.byref(text))
            hint = (
                "make room on the device: smaller --kv-cache, --max-batch"
                if code == 2
                else "the artifact may need a newer driver"
                if code in (209, 218, 222)
                else ""
            )
            raise EnvironmentLacks(f"{self.names.functions[key]} failed: {(text.value or b'error').decode()} ({code})", hint)

    def arch(self) -> str:
        """The first device's architecture: sm_90, gfx942."""
        if self.names.family == "rocm":
            return _hip_arch(self._library)
        device, major, minor = INT(), INT(), INT()
        self.check("device", c.byref(device), 0)
        self.check("attribute", c.byref(major), self.names.major, device)
        self.check("attribute", c.byref(minor), self.names.minor, device)
        return f"sm_{major.value}{minor.value}"


def _open(names: Names) -> c.CDLL:
    for name in names.libraries:
        try:
            return c.CDLL(name)
        except OSError:
            continue
    raise EnvironmentLacks(
        f"{names.libraries[0]} is not on this machine",
        f"a {names.family} target needs the vendor's driver; --target cpu needs none",
    )


def _hip_arch(library: c.CDLL) -> str:
    """hipDeviceProp_t holds the name as text; its place differs between versions, its form does not."""
    for name in ("hipGetDevicePropertiesR0600", "hipGetDeviceProperties"):
        if hasattr(library, name):
            raw = c.create_string_buffer(8192)
            if getattr(library, name)(raw, 0) == 0:
                found = re.search(rb"gfx[0-9a-f]{3,4}", raw.raw)
                if found:
                    return found[0].decode()
    raise EnvironmentLacks("the rocm driver does not say what its device is")


class _Kernel:
    """A loaded function with room for its arguments."""

    def __init__(self, function: int, facts: dict[str, Any]) -> None:
        self.function = function
        self.threads, self.shared = int(facts["threads"]), int(facts["shared"])
        self.overlaps, self.scratch = bool(facts.get("overlaps")), int(facts.get("scratch", 0))
        kinds = [c.c_uint64 if t.startswith("*") else c.c_int32 for t in facts["signature"]]
        self.values = [kind(0) for kind in (*kinds, c.c_uint64, c.c_uint64)]  # Triton's kernels take two scratch pointers more
        self.places = (POINTER * len(self.values))(*[c.addressof(v) for v in self.values])


class NativeDriver:
    """The first device of a vendor, in one stream. Owns what it allocates and loads."""

    def __init__(self, names: Names) -> None:
        self._library = Library(names)
        self.arch = self._library.arch()
        self._device = INT()
        self._library.check("device", c.byref(self._device), 0)
        if names.family == "cuda":
            self._context: Any = POINTER()
            self._library.check("retain", c.byref(self._context), self._device)
        else:
            self._context = 0
        self._library.check("current", self._context)
        self._stream = POINTER()
        self._library.check("stream", c.byref(self._stream), *([1] if names.family == "cuda" else []))
        self._held: set[int] = set()
        self._modules: list[Any] = []
        self._scratch = 0
        self._pinned: list[tuple[int, Any]] = []
        self._overlap = _Attribute(PROGRAMMATIC, 0, 1)
        self._config = _Config(attributes=c.addressof(self._overlap), count=1, stream=self._stream)
        self._thread = threading.get_ident()

    def _here(self) -> Library:
        """The library, with the device current in the calling thread: the engine's is not the one that opened it."""
        if threading.get_ident() != self._thread:
            self._library.check("current", self._context)
            self._thread = threading.get_ident()
        return self._library

    def allocate(self, size: int) -> int:
        address = POINTER()
        self._here().check("alloc", c.byref(address), max(size, 256))
        assert address.value
        self._held.add(address.value)
        self._here().check("set", address, 0, max(size, 256), self._stream)
        return address.value

    def free(self, address: int) -> None:
        self.synchronize()
        self._held.discard(address)
        self._here().check("free", address)

    def upload(self, address: int, data: memoryview) -> None:
        if len(data) >= COPIERS * PIECE:
            self._upload_large(address, data)
        elif len(data):
            source = c.addressof(c.c_char.from_buffer(data)) if not data.readonly else _address(data)
            self._here().check("to_device", address, source, len(data), self._stream)
            self.synchronize()

    def _upload_large(self, address: int, data: memoryview) -> None:
        import numpy as np

        library, source = self._here(), np.frombuffer(data, np.uint8)
        self.synchronize()
        if not self._pinned:
            for _ in range(COPIERS):
                place, stream = POINTER(), POINTER()
                library.check("host", c.byref(place), PIECE, 0)
                library.check("stream", c.byref(stream), *([1] if library.names.family == "cuda" else []))
                assert place.value
                self._pinned.append((place.value, stream))

        def copy(number: int) -> None:
            place, stream = self._pinned[number]
            library.check("current", self._context)
            buffer = np.ctypeslib.as_array((c.c_uint8 * PIECE).from_address(place))
            for at in range(number * PIECE, source.size, COPIERS * PIECE):
                piece = source[at : at + PIECE]
                np.copyto(buffer[: piece.size], piece)
                library.check("to_device", address + at, place, piece.size, stream)
                library.check("wait", stream)

        with ThreadPoolExecutor(COPIERS) as pool:
            list(pool.map(copy, range(COPIERS)))

    def download(self, address: int, out: Array) -> None:
        self._here().check("to_host", out.ctypes.data, address, out.nbytes, self._stream)
        self.synchronize()

    def copy(self, source: int, target: int, size: int) -> None:
        self._here().check("within", target, source, size, self._stream)

    def load(self, binary: bytes, facts: dict[str, Any]) -> _Kernel:
        module, function = POINTER(), POINTER()
        self._here().check("load", c.byref(module), binary)
        self._modules.append(module)
        self._here().check("function", c.byref(function), module, facts["symbol"].encode())
        if facts["shared"] > LARGE_SHARED:
            self._here().check("limit", function, self._library.names.max_shared, facts["shared"])
        assert function.value
        kernel = _Kernel(function.value, facts)
        if kernel.scratch:
            self._scratch = self._scratch or self.allocate(SCRATCH_BYTES)
            kernel.values[-2].value = self._scratch
        return kernel

    def launch(self, kernel: _Kernel, grid: tuple[int, int, int], arguments: list[int]) -> None:
        for slot, value in zip(kernel.values, arguments, strict=False):
            slot.value = value
        if kernel.scratch * grid[0] * grid[1] * grid[2] > SCRATCH_BYTES:
            raise EnvironmentLacks(f"a launch of {grid} programs needs more than {SCRATCH_BYTES} bytes of scratch memory")
        if kernel.overlaps:
            self._config.sizes[:] = (*grid, kernel.threads, 1, 1, kernel.shared)
            self._here().check("launch_after", c.byref(self._config), kernel.function, kernel.places, None)
            return
        self._here().check(
            "launch", kernel.function, *grid, kernel.threads, 1, 1, kernel.shared, self._stream, kernel.places, None
        )

    def record(self) -> bool:
        return self._here().call("begin", self._stream, self._library.names.capture_mode) == 0

    def recorded(self) -> Any:
        graph, made = POINTER(), POINTER()
        self._here().check("end", self._stream, c.byref(graph))
        self._here().check("instantiate", c.byref(made), graph, 0)
        return made

    def replay(self, recording: Any) -> None:
        self._here().check("graph", recording, self._stream)

    def synchronize(self) -> None:
        self._here().check("wait", self._stream)

    def free_bytes(self) -> int:
        free, total = SIZE(), SIZE()
        self._here().check("memory", c.byref(free), c.byref(total))
        return int(free.value)

    def close(self) -> None:
        self._here()
        for address in list(self._held):
            self.free(address)
        for place, stream in self._pinned:
            self._library.call("free_host", place)
            self._library.call("destroy_stream", stream)
        for module in self._modules:
            self._library.call("unload", module)
        self._library.call("destroy_stream", self._stream)
        if self._library.names.family == "cuda":
            self._library.call("release", self._device)


def _address(data: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(data, np.uint8).ctypes.data)
