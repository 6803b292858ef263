"""Triton's interpreter as a device: a Plan's kernels run from their sources, on the CPU, for tests and for machines without a GPU.

It needs a process of its own, in which `interpret()` is called before Triton is imported. Its bfloat16 is wrong in Triton 3.9 (raw
16-bit integers are added); `_repair` has it compute with ml_dtypes' bfloat16, and sum products in one order.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EnvironmentLacks
from ..hip.emulator import Emulator

DTYPES = {
    "*fp32": "float32",
    "*i32": "int32",
    "*i64": "int64",
    "*u8": "uint8",
    "*i8": "int8",
    "*i16": "int16",
    "*bf16": "bfloat16",
    "*fp16": "float16",
    "*fp8e4nv": "float8_e4m3fn",
}

OF_DEVICES = ("OVERLAP", "ASM", "LINES", "EARLY")
"""Constants of kernels that ask for what only a device has."""


def interpret() -> None:
    """Turn this process into one that interprets Triton. Raises EnvironmentLacks when Triton has been imported already."""
    import os

    if "triton" in sys.modules:
        raise EnvironmentLacks(
            "Triton has been imported in this process: it cannot interpret any more", "use a process of its own"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    _repair()


def _repair() -> None:
    import ml_dtypes
    import triton.language as tl
    from triton.runtime import interpreter as module

    kind = np.dtype(ml_dtypes.bfloat16)
    builder = module.InterpreterBuilder
    names, load, store = module._get_np_dtype, module._interpreter.load, module._interpreter.store
    masked_load, dot, cast, convert = builder.create_masked_load, builder.create_dot, builder.cast_impl, builder.create_fp_to_fp

    def dtype(of: Any) -> Any:
        element = of.element_ty if isinstance(of, tl.block_type) else of
        return kind if element == tl.bfloat16 else names(of)

    def is_bfloat16(*types: Any) -> bool:
        return any(t.scalar == tl.bfloat16 for t in types)

    def create_masked_load(
        self: Any, pointers: Any, mask: Any, other: Any, cache_policy: Any = None, is_volatile: bool = False
    ) -> Any:
        mask = module.TensorHandle(mask.data.astype(bool), mask.dtype)  # of Python's numbers it has bytes
        if pointers.get_element_ty() != tl.bfloat16:
            return masked_load(self, pointers, mask, other, cache_policy, is_volatile)
        rest = np.zeros(pointers.data.shape, np.uint16) if other is None else np.ascontiguousarray(other.data).view(np.uint16)
        return module.TensorHandle(load(pointers.data, mask.data, rest, np.dtype(np.uint16)).view(kind), tl.bfloat16)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, cache_policy: Any = None) -> Any:
        data = value.data
        return store(
            pointers.data, np.ascontiguousarray(data).view(np.uint16) if data.dtype == kind else data, mask.data.astype(bool)
        )

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if is_bfloat16(source.dtype, target):
            return module.TensorHandle(source.data.astype(dtype(target)), target.scalar)
        return cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        eight = 8 in (source.dtype.scalar.primitive_bitwidth, target.scalar.primitive_bitwidth)
        return (
            cast_impl(self, source, target)
            if is_bfloat16(source.dtype, target) and not eight
            else convert(self, source, target, rounding)
        )

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        """Σ_k in steps of 16, each added to what there is, as a device's instructions do: so an element does not depend on the shape of the
        tile, as BLAS's does."""
        if not np.issubdtype(d.data.dtype, np.floating):
            return dot(self, a, b, d, precision, imprecise)
        left, right = (
            (x.data.view(ml_dtypes.float8_e4m3fn) if x.dtype.scalar == tl.float8e4nv else x.data).astype(np.float64)
            for x in (a, b)
        )
        total = d.data
        for k in range(0, left.shape[-1], 16):
            step = (left[..., :, k : k + 16, None] * right[..., None, k : k + 16, :]).sum(-2)
            total = (total + step).astype(d.data.dtype)
        return module.TensorHandle(total, d.dtype.scalar)

    module._get_np_dtype = dtype
    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store
    builder.cast_impl, builder.create_fp_to_fp, builder.create_dot = cast_impl, create_fp_to_fp, create_dot


class InterpreterDriver:
    """A driver (runtime/drivers/driver.py) whose device is this process. `sources`: the kernels' modules by file name; `hip`: the sources of
    those in HIP C++, which are emulated with waves of `wave` lanes."""

    def __init__(self, sources: dict[str, str], hip: dict[str, str] | None = None, wave: int = 64) -> None:
        self.arch = "interpreter"
        self._emulator = Emulator(hip, wave) if hip else None
        self._held: dict[int, np.ndarray[Any, Any]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="llmc-interpret-")
        package = Path(self._folder.name) / "llmc_kernels"
        package.mkdir()
        for name, text in {"__init__.py": "", **sources}.items():
            (package / name).write_text(text)
        sys.path.insert(0, self._folder.name)
        for name in [m for m in sys.modules if m.partition(".")[0] == "llmc_kernels"]:
            del sys.modules[name]

    def allocate(self, size: int) -> int:
        array = np.zeros(max(size, 256) + 4096, np.uint8)
        address = -(-array.ctypes.data // 256) * 256
        self._held[address] = array
        return address

    def free(self, address: int) -> None:
        del self._held[address]

    def _view(self, address: int, size: int) -> np.ndarray[Any, Any]:
        import ctypes

        return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)

    def upload(self, address: int, data: memoryview) -> None:
        self._view(address, len(data))[:] = np.frombuffer(data, np.uint8)

    def download(self, address: int, out: np.ndarray[Any, Any]) -> None:
        out.reshape(-1).view(np.uint8)[:] = self._view(address, out.nbytes)

    def copy(self, source: int, target: int, size: int) -> None:
        self._view(target, size)[:] = self._view(source, size)

    def load(self, binary: bytes, facts: dict[str, Any]) -> Any:
        if facts.get("source") == "hip":
            return None, facts
        return getattr(importlib.import_module(f"llmc_kernels.{facts['module']}"), facts["function"]), facts

    def launch(self, kernel: Any, grid: tuple[int, int, int], arguments: list[int]) -> None:
        import torch

        function, facts = kernel
        if function is None:
            assert self._emulator is not None
            self._emulator.launch(facts, grid, arguments)
            return
        values = []
        for kind, value in zip(facts["signature"], arguments, strict=True):
            if kind.startswith("*"):
                dtype = getattr(torch, DTYPES[kind])
                values.append(_pointer(value, dtype) if value else torch.empty(0, dtype=dtype))
            else:
                values.append(value)
        given = iter(values)
        constants = {name: 0 if name in OF_DEVICES else value for name, value in facts["constants"].items()}
        call = {name: constants[name] if name in constants else next(given) for name in function.arg_names}
        function[grid](**call)

    def record(self) -> bool:
        return False

    def recorded(self) -> Any:
        raise NotImplementedError

    def replay(self, recording: Any) -> None:
        raise NotImplementedError

    def synchronize(self) -> None: ...

    def free_bytes(self) -> int:
        return 1 << 30

    def close(self) -> None:
        if self._emulator is not None:
            self._emulator.close()
        self._held.clear()
        self._folder.cleanup()


def _pointer(address: int, dtype: Any) -> Any:
    """A tensor of one element that lies at an address: the interpreter takes tensors, and uses where they lie."""
    import ctypes

    import torch

    raw = (ctypes.c_uint8 * 8).from_address(address)
    return torch.frombuffer(raw, dtype=dtype, count=1)
