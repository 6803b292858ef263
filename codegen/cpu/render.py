"""Rendering: the calls of a step as C source. Layers of equal structure share one function and a table of pointers."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...compiler.ir.graph import Graph
from ...compiler.ir.ops.pointwise import ACTIVATIONS
from ...quant.levels import FOUR_BITS
from ...runtime.artifact import layout_digest
from ..lowering import INPUTS, Pointer, WeightSpec, place_caches, unique_names
from ..packing import FIELDS
from ..templates import environment
from ..tuning import Tuning, shipped_tuning
from . import generic
from .lower import Call, Lowered, lower

ABI = 5
TEMPLATES = Path(__file__).parent / "templates"
HEADERS = ("vec.h", "pool.h", "sampling.h", "peaks.h", "amx.h", "recurrence.h", "indexer.h")
AMX_KINDS = (
    "bf16",
    "i8",
    "u8",
    "i4",
    "u4",
    "e4m3",
    "e5m2",
    "e2m1",
    "iq4",
    *(f"{s}{b}" for b in FIELDS for s in "iu"),
)  # exact in bfloat16


def _bf16_table(values: Iterable[float]) -> str:
    """Sixteen values that are exact in bfloat16, twice, as the bits of the type."""
    bits = [struct.unpack("<I", struct.pack("<f", v))[0] for v in values]
    assert len(bits) == 16 and all(b % 65536 == 0 for b in bits)
    return ", ".join(f"0x{b >> 16:04x}" for b in bits * 2)


DOT_TABLES = {
    "i4": _bf16_table(range(-8, 8)),
    "u4": _bf16_table(range(16)),
    **{name: _bf16_table(levels) for name, levels in FOUR_BITS.items() if name in AMX_KINDS},
}
LEVEL_TABLES = {name: ", ".join(f"{v.hex()}f" for v in levels) for name, levels in FOUR_BITS.items()}


@dataclass(frozen=True)
class Rendered:
    """Sources by file name, and the lowering that they come from."""

    sources: dict[str, str]
    lowered: Lowered
    kernels: tuple[dict[str, object], ...]


@dataclass
class _Segment:
    calls: list[dict[str, object]]
    rows: list[list[int]]
    width: int


def render(
    graph: Graph,
    kv_kind: str,
    tuning: Tuning | None = None,
    *,
    tables: str = "each",
    named: Callable[[list[WeightSpec]], list[str]] = unique_names,
) -> Rendered:
    """The C sources of a graph's step. The same graph and tuning (by default the package's own) give the same bytes. tables: as
    `place_caches` has it; named: the weights' names in the artifact."""
    lowered = lower(graph, kv_kind)
    slots, slot_of = lowered.slots()
    numbers, kernels = _number_kernels(lowered.calls)

    def pointer_id(pointer: Pointer) -> int:
        sizes = {
            "weight": len(lowered.weights),
            "buffer": len(slots),
            "cache": len(lowered.caches),
            "state": len(lowered.states),
            "input": len(INPUTS),
        }
        base = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
        return base[pointer.kind] + (slot_of[pointer.index] if pointer.kind == "buffer" else pointer.index)

    segments = [
        _segment(lowered.calls, start, period, count, pointer_id, numbers)
        for start, period, count in _periods([c.code for c in lowered.calls])
    ]
    kinds = lowered.kinds
    templates = environment(TEMPLATES)
    float_kinds, dot_kinds = sorted(kinds["float"]), sorted(kinds["dot"])
    common = {"float_kinds": float_kinds, "dot_kinds": dot_kinds, "activations": ACTIVATIONS}
    numbers_of = {
        "fields": FIELDS,
        "amx_kinds": AMX_KINDS,
        "halves": sorted(kinds["halves"]),
        "level_tables": LEVEL_TABLES,
        "dot_tables": DOT_TABLES,
        "group_rows": (1, 2, 3, 4, 5, 6),
        "few_rows": (1, 2, 3, 4, 5, 6, 7, 8),
        "dot_rows": (1, 2, 3, 4, 6, 12),
    }
    caches = {"kv_kinds": sorted(kinds["kv"]), "kv_rows": (1, 2, 3, 4), "pair_rows": (1, 2, 3, 4, 5, 6)}
    limits, places = lowered.limits, place_caches(lowered.caches, tables)
    step = templates.get_template("step.c.j2").render(
        **common,
        amx_kinds=AMX_KINDS,
        linear_source=templates.get_template("linear.c.j2").render(**common, **numbers_of, **caches),
        int8_source=templates.get_template("linear_int8.c.j2").render(**common, **numbers_of),
        attention_source=templates.get_template("attention.c.j2").render(**caches),
        table_kinds=sorted(kinds["table"]),
        experts_kinds=sorted(kinds["experts"]),
        heads_kinds=sorted(kinds["heads"]),
        generic=[generic.HELPERS, *[lowered.functions[n] for n in sorted(lowered.functions)]],
        segments=segments,
        weight_count=len(lowered.weights),
        slots=slots,
        caches=lowered.caches,
        places=places.places,
        regions=len(places.regions),
        tables=len(places.reaches),
        states=lowered.states,
        kernel_names=[k["name"] for k in kernels],
        abi=ABI,
        layout=layout_digest(named(lowered.weights), _vocabulary(graph)),
        max_k=limits["k"],
        attention_rows=limits["attention_rows"],
        max_dk=limits["dk"],
        max_dv=limits["dv"],
        shared_row_bytes=limits["shared_row_bytes"],
        partial_bytes=limits["partial_bytes"],
        turned_bytes=limits["turned_bytes"],
        index_bytes=limits["index_bytes"],
        index_list_bytes=limits["index_list_bytes"],
        logits_slot=slot_of[lowered.logits.id],
    )
    headers = {name: (TEMPLATES / name).read_text() for name in HEADERS}
    headers["tuning.h"] = (tuning or shipped_tuning()).header()
    headers["step.h"] = templates.get_template("step.h.j2").render(modes=sorted(kinds["modes"]), hadamard=kinds["hadamard"])
    return Rendered({"step.c": step, **headers}, lowered, tuple(kernels))


def _vocabulary(graph: Graph) -> int:
    (logits,) = graph.outputs
    width = logits.type.shape[-1]
    assert isinstance(width, int)
    return width


def _number_kernels(calls: list[Call]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Calls of equal code are one kernel; its name is the module it serves with the layer's number replaced by a star."""
    numbers: dict[str, int] = {}
    kernels: list[dict[str, Any]] = []
    for call in calls:
        if call.code not in numbers:
            numbers[call.code] = len(kernels)
            where = re.sub(r"\.\d+(?=\.|$)", ".*", call.scope)
            kernels.append(
                {
                    "name": f"{call.kernel} {where}".strip()[:160],
                    "kernel": call.kernel,
                    "scheme": call.scheme,
                    "weight_bytes": call.weight_bytes,
                    "operations": call.operations,
                    "calls": 0,
                    "modules": [],
                    "reason": call.reason,
                    **({"operations_a_position": call.operations_a_position} if call.operations_a_position else {}),
                    **({"experts": list(call.experts)} if call.experts else {}),
                }
            )
        kernel = kernels[numbers[call.code]]
        kernel["calls"] += 1
        kernel["modules"].append(call.scope)
    return numbers, kernels


def _periods(codes: list[str]) -> list[tuple[int, int, int]]:
    """Split a list into (start, period, count): runs that repeat, the longest cover first; the rest as runs of count one."""
    ids: dict[str, int] = {}
    keys = [ids.setdefault(c, len(ids)) for c in codes]
    out: list[tuple[int, int, int]] = []
    plain = at = 0
    while at < len(keys):
        best = (0, 0)
        for period in range(1, min(512, (len(keys) - at) // 2) + 1):
            if keys[at] != keys[at + period]:
                continue
            count = 1
            while keys[at + count * period : at + (count + 1) * period] == keys[at : at + period]:
                count += 1
            if count > 1 and period * count > best[0] * best[1]:
                best = (period, count)
        if best[1] > 1 and best[0] > 1:
            if plain < at:
                out.append((plain, at - plain, 1))
            out.append((at, *best))
            at += best[0] * best[1]
            plain = at
        else:
            at += 1
    if plain < at:
        out.append((plain, at - plain, 1))
    return out


def _shift_pointers(code: str, base: int) -> str:
    """@0, @1, … of one call as P(base), P(base + 1), … of its segment."""
    return re.sub(r"@(\d+)", lambda m: f"P({base + int(m[1])})", code)


def _segment(
    calls: list[Call], start: int, period: int, count: int, pointer_id: Callable[[Pointer], int], numbers: dict[str, int]
) -> _Segment:
    made: list[dict[str, object]] = []
    base = 0
    for call in calls[start : start + period]:
        code = _shift_pointers(call.code, base)
        made.append({"label": f"{call.label} {call.scope}".strip().replace("*/", ""), "code": code, "number": numbers[call.code]})
        base += len(call.pointers)
    rows = [
        [pointer_id(p) for c in calls[start + i * period : start + (i + 1) * period] for p in c.pointers] for i in range(count)
    ]
    return _Segment(made, rows, base)
