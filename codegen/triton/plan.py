"""What a Plan is made of before its kernels are compiled, and how a lowering adds to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...compiler.ir.graph import Graph, Node
from ...compiler.ir.types import Dim
from ...errors import UnsupportedError
from ..hip import build as hip
from ..layout import BYTES, Buffer, Layout
from ..lowering import Cache, Lowering, Pointer, WeightSpec, assign_slots
from ..tuning import Tuning, shipped_tuning
from . import generic
from .target import GpuTarget

KV_KINDS = ("f32", "f16", "bf16")
TYPES = {
    "f32": "*fp32",
    "i64": "*i64",
    "i32": "*i32",
    "bool": "*u8",
    "bf16": "*bf16",
    "f16": "*fp16",
    "i8": "*i8",
    "u8": "*u8",
    "f8": "*fp8e4nv",
}


@dataclass(frozen=True)
class Kernel:
    """One specialised kernel: `constants` are its constexpr arguments, `signature` the types of the others, in order; `aligned` says that
    its pointers are multiples of 16 bytes; `source` what it is written in, triton or hip; `registers` how many a thread may use, where it is
    not the compiler's choice."""

    module: str
    function: str
    signature: tuple[str, ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int = 4
    stages: int = 3
    aligned: bool = True
    source: str = "triton"
    registers: int = 0

    def with_constants(self, **constants: Any) -> Kernel:
        """The same kernel with other values of some constants."""
        return replace(self, constants=tuple(sorted((dict(self.constants) | constants).items())))

    @property
    def name(self) -> str:
        text = json.dumps([
            self.module, self.function, self.signature, self.constants, self.warps, self.stages, self.aligned, self.source, self.registers,
        ])  # fmt: skip
        return f"{self.function}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Variant:
    """A kernel for at most so many rows (0: any number). A grid is up to three sizes (symbol, factor, divisor): ceil(value·factor / divisor),
    plus a fourth number where there is one. `tile`: tokens of one sequence that a program takes, where the kernel walks tiles."""

    most: int
    kernel: Kernel
    grid: list[list[Any]]
    tile: int = 0


@dataclass
class Launch:
    """One step of the plan. `variants`, of which the first whose rows are enough runs. `when` names a use of the plan that is no step; `steps`: the
    steps that it is for (runtime/plan.py), all where there are none."""

    kernel: str
    scope: str
    arguments: list[list[Any]]
    variants: list[Variant]
    rows: list[Any]
    pointers: list[Pointer] = field(default_factory=list)
    when: str = ""
    steps: tuple[int, ...] = ()
    scheme: str = ""
    weight_bytes: int = 0
    operations: int = 0
    product: str = ""
    """Of a product whose tiles a tuning table may choose: what the table calls it."""


@dataclass(frozen=True)
class Rows:
    """A weight as rows on the device: which packed tensor it is made of, by which kernel, and how many bytes it takes."""

    spec: int
    kernel: Kernel | None
    grid: tuple[int, int]
    bytes: int


@dataclass
class Lowered:
    """The plan before its kernels are compiled. `carry`: floats a token that layers before these, elsewhere, hand to them."""

    launches: list[Launch]
    weights: list[WeightSpec]
    device: list[Rows]
    buffers: list[Buffer]
    caches: list[Cache]
    logits: Buffer
    vocabulary: int
    functions: dict[str, str]
    tables: dict[str, tuple[float, ...]]
    part_floats: int
    fallbacks: list[dict[str, str]]
    carry: int = 0

    def slots(self) -> tuple[list[dict[str, int]], dict[int, int]]:
        """The arena's slots, in bytes a token, a row and fixed; and each buffer's."""
        return assign_slots([launch.pointers for launch in self.launches], self.buffers, self.logits)

    def kernels(self) -> list[Kernel]:
        """Every kernel that the plan needs, each once."""
        found: dict[str, Kernel] = {}
        for launch in self.launches:
            found.update({v.kernel.name: v.kernel for v in launch.variants})
        found.update({rows.kernel.name: rows.kernel for rows in self.device if rows.kernel is not None})
        return list(found.values())


def power(n: int, least: int = 16) -> int:
    """The power of two from n on."""
    size = least
    while size < n:
        size *= 2
    return size


def up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class PlanLowering(Lowering):
    """A lowering whose calls are launches."""

    loops = generic

    def __init__(self, graph: Graph, kv_kind: str, target: GpuTarget, fast: bool = False, tuning: Tuning | None = None) -> None:
        super().__init__(graph)
        self.target = target
        self.tuning = tuning or shipped_tuning()
        self.fast = fast and target.family == "rocm"
        if kv_kind not in KV_KINDS:
            raise UnsupportedError(f"a GPU keeps its cache in {', '.join(KV_KINDS)}, not in {kv_kind}", "give another --kv-dtype")
        self.kv_kind = kv_kind
        self.launches: list[Launch] = []
        self.device: list[Rows] = []
        self._on_device: dict[tuple[int, str], int] = {}
        self.caches: list[Cache] = []
        self.functions: dict[str, str] = {}
        self.tables: dict[str, tuple[float, ...]] = {}
        self.part_floats = 0
        self._writers: dict[Buffer, Launch] = {}  # of what one node alone reads: products for few rows

    def _kernel(
        self,
        module: str,
        function: str,
        signature: Sequence[str],
        warps: int = 4,
        stages: int = 3,
        registers: int = 0,
        **constants: Any,
    ) -> Kernel:
        if self.target.family == "rocm" and function in hip.SAME:
            return self._hip(function, signature, warps, **constants)
        if module != "layout":
            constants["OVERLAP"] = self.target.overlaps
        return Kernel(module, function, tuple(signature), tuple(sorted(constants.items())), warps, stages, registers=registers)

    def _hip(self, function: str, signature: Sequence[str], warps: int = 4, **constants: Any) -> Kernel:
        """A kernel in HIP C++."""
        return Kernel("hip", function, tuple(signature), tuple(sorted(constants.items())), warps, source="hip")

    def _argument(self, item: Any) -> tuple[list[Any], Pointer | None]:
        """A launch's argument: a buffer (with an offset in elements, given in bytes), a pointer to a weight, or a name."""
        offset = 0
        if isinstance(item, tuple):
            item, offset = item
        if isinstance(item, Layout):
            item = item.buffer
        if isinstance(item, Buffer):
            pointer = self._any_pointer(item)
            return [pointer.kind, pointer.index, offset * BYTES[item.dtype]], pointer
        if isinstance(item, Pointer):
            return [item.kind, item.index, offset], item
        if isinstance(item, list):
            return item, None
        if item is None:
            return ["null"], None
        kind, _, name = str(item).partition(":")
        return [kind, int(name) if name.isdigit() else name], None

    def _launch(
        self, node: Node | None, arguments: Sequence[Any], kernel: Kernel | Sequence[Variant],
        grid: list[list[Any]] | None = None, rows: Dim = 1, when: str = "", **facts: Any,
    ) -> None:  # fmt: skip
        made = [self._argument(a) for a in arguments]
        variants = [Variant(0, kernel, grid or [])] if isinstance(kernel, Kernel) else list(kernel)
        if any(p is not None and a[2] % 16 for a, p in made):  # what is allocated begins on 256 bytes, a slice of it anywhere
            variants = [replace(v, kernel=replace(v.kernel, aligned=False)) for v in variants]
        self.launches.append(
            Launch(
                variants[0].kernel.function,
                node.scope if node is not None else "",
                [a for a, _ in made],
                variants,
                list(generic.lanes_of(rows)),
                [p for _, p in made if p is not None],
                when,
                **facts,
            )
        )

    def call_generic(self, node: Node | None, kernel: str, *loop: Any) -> None:
        """Launch a generated loop; loops with equal bodies are one."""
        body, layouts, count = loop
        name = f"{kernel}_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
        self.functions[name] = generic.function(name, body, len(layouts))
        made = self._kernel("generic", name, [*(TYPES[x.buffer.dtype] for x in layouts), "i32", "i32"], BLOCK=generic.BLOCK)
        symbol, factor = generic.lanes_of(count)
        self._launch(node, [*(x.buffer for x in layouts), "size:T", "size:R"], made, [[symbol, factor, generic.BLOCK]])
