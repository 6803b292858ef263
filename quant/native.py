"""Calibration's inner loops in C (native.c), built for this machine once and kept: codes one after the other, descent over codes, products."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from ..errors import EnvironmentLacks
from ..runtime.cpu_info import available_levels
from ..toolchain.c import build
from .algorithms.rtn import inverse

STRIP = 32
TALL = 96


class _Grid(ctypes.Structure):
    _fields_: ClassVar = [
        ("k", ctypes.c_int32), ("n", ctypes.c_int32), ("group", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("inverses", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p), ("top", ctypes.c_float),
    ]  # fmt: skip


class _Factor(ctypes.Structure):
    _fields_: ClassVar = [("at", ctypes.c_void_p), ("r", ctypes.c_ssize_t), ("c", ctypes.c_ssize_t)]


@cache
def _library() -> Any:
    """native.c for the best level of this machine; raises EnvironmentLacks where there is none, or no compiler."""
    levels = available_levels()
    if not levels:
        raise EnvironmentLacks("this CPU runs none of the known levels")
    binary = build({"native.c": Path(__file__).with_name("native.c").read_text()}, levels[0], main="native.c")
    handle = os.memfd_create("llmc-native")
    os.write(handle, binary)
    library = ctypes.CDLL(f"/proc/self/fd/{handle}")  # the descriptor stays open: the loader knows the library by this path
    pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t
    library.llmc_best_candidates.argtypes = [*[integer] * 6, ctypes.c_float, *[pointer] * 6]
    for name in ("llmc_round_codes", "llmc_sweep_codes"):
        getattr(library, name).argtypes = [pointer, integer, integer, *[pointer] * 4]
    if hasattr(library, "llmc_product"):
        library.llmc_product_room.restype, library.llmc_product_room.argtypes = ctypes.c_int64, [integer]
        library.llmc_product.argtypes = [pointer, pointer, *[integer] * 5, pointer, size, integer, pointer]
    return library


def multiplies() -> bool:
    """Whether `product` is faster than torch's: with AVX-512's bfloat16 products, but no tiles. (With tiles it is there, too.)"""
    return available_levels()[:1] == ("x86-64-v4",)


def _in_threads(count: int, step: int, work: Callable[[int, int], None]) -> None:
    """work(first, last) over [0, count), a part of whole steps for each thread."""
    size = -(-count // (step * torch.get_num_threads())) * step
    starts = range(0, count, size)
    with ThreadPoolExecutor(len(starts)) as pool:
        list(pool.map(lambda at: work(at, min(at + size, count)), starts))


class Places(NamedTuple):
    """What codes stand for: group [K], each input's; scales and zeros [G, N] float32; codes go from 0 to `top`."""

    group: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    top: float


def _codes(name: str, values: torch.Tensor, matrix: torch.Tensor, codes: torch.Tensor, places: Places) -> None:
    k, n = values.shape
    group, scales, zeros, top = places
    held = [group.to(torch.int32).contiguous(), scales.contiguous(), inverse(scales).contiguous(), zeros.contiguous()]
    grid = _Grid(k, n, *[t.data_ptr() for t in held], top)
    values, matrix = values.contiguous(), matrix.contiguous()
    assert codes.is_contiguous() and all(t.dtype == torch.float32 for t in (values, matrix, codes, scales, zeros))
    function = getattr(_library(), name)

    def work(first: int, last: int) -> None:
        room = torch.empty(k, STRIP)
        function(ctypes.byref(grid), first, last, values.data_ptr(), matrix.data_ptr(), codes.data_ptr(), room.data_ptr())

    _in_threads(n, STRIP, work)


def round_codes(weight: torch.Tensor, root: torch.Tensor, places: Places) -> torch.Tensor:
    """GPTQ: weight [K, N] float32, inputs in the order of rounding; root [K, K], the upper Cholesky factor of the inverse moments.
    Codes [K, N], as float32."""
    codes = torch.empty_like(weight, memory_format=torch.contiguous_format)
    _codes("llmc_round_codes", weight, root, codes, places)
    return codes


def sweep_codes(slope: torch.Tensor, h: torch.Tensor, codes: torch.Tensor, places: Places) -> None:
    """One sweep of coordinate descent: each of `codes` [K, N] float32 in turn to its best value given all others. slope [K, N] =
    h·(w − q) as it is before; h [K, K] symmetric."""
    _codes("llmc_sweep_codes", slope, h, codes, places)


def best_candidates(
    w: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, top: float
) -> torch.Tensor:
    """Which of the candidates scales, zeros [C, N, G] gives each group of w [N, G, size] the least squared error weighted by weights
    [G, size], the first of equals: [N, G] int64. All float32."""
    n, groups, size = w.shape
    pad = -size % 16
    w, weights = (torch.nn.functional.pad(t, (0, pad)).contiguous() for t in (w, weights))
    held = [scales.contiguous(), inverse(scales).contiguous(), zeros.contiguous()]
    best = torch.empty(n, groups, dtype=torch.int32)
    function = _library().llmc_best_candidates
    places = [t.data_ptr() for t in (w, weights, *held, best)]
    _in_threads(n, 1, lambda first, last: function(first, last, n, groups, size + pad, scales.shape[0], top, *places))
    return best.long()


def product(a: torch.Tensor, b: torch.Tensor, *, over: str, triangle: bool = False) -> torch.Tensor:
    """Factors rounded to bfloat16, sums float32. over="rows": a [R, M], b [R, N] → aᵀ·b [M, N], with `triangle` only on and above the
    diagonal; over="columns": a [M, R], b [N, R] → a·bᵀ [M, N]. Float32, of any strides."""
    library = _library()
    rows, columns = (0, 1) if over == "rows" else (1, 0)
    r, m, n = a.shape[rows], a.shape[columns], b.shape[columns]
    factors = [_Factor(t.data_ptr(), t.stride(rows), t.stride(columns)) for t in (a, b)]
    room = library.llmc_product_room(n)

    def part(first: int, last: int, m0: int, m1: int, out: torch.Tensor) -> None:
        scratch = torch.empty(room)
        library.llmc_product(
            ctypes.byref(factors[0]),
            ctypes.byref(factors[1]),
            first,
            last,
            m0,
            m1,
            n,
            out.data_ptr(),
            n,
            int(triangle),
            scratch.data_ptr(),
        )

    if r > m:  # long sums: each thread has its own rows and sums
        sums: dict[int, torch.Tensor] = {}
        _in_threads(r, 2, lambda first, last: part(first, last, 0, m, sums.setdefault(first, torch.empty(m, n))))
        return sum([sums[at] for at in sorted(sums)][1:], start=sums[0])
    out = torch.empty(m, n)
    _in_threads(m, TALL, lambda first, last: part(0, r, first, last, out))
    return out
