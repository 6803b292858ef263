"""Everything that a graph becomes for the targets that are asked for: lowered once a family, over one list of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..compiler.ir.graph import Graph
from ..errors import UnsupportedError, UsageError, nearest
from ..runtime.plan import BLOCK, STEP
from .cut import cut
from .lowering import Cache, WeightSpec, place_caches, unique_names
from .tuning import Tuning

if TYPE_CHECKING:
    from .cpu.lower import Lowered as CpuLowered
    from .cpu.render import Rendered
    from .triton.plan import Lowered
    from .triton.target import GpuTarget

SCALED = ("i16", "i8", "e4m3")
"""Caches of codes, with a scale for each position."""
ELEMENT = {"f32": 4, "f16": 2, "bf16": 2, "i16": 2, "i8": 1, "e4m3": 1}
STEP_ROWS = 64
CPU_LEVELS = ("x86-64-v3", "x86-64-v4", "x86-64-amx")


@dataclass(frozen=True)
class Targets:
    """CPU levels and GPUs, in order, each once."""

    levels: tuple[str, ...] = ()
    gpus: tuple[GpuTarget, ...] = ()

    @property
    def names(self) -> list[str]:
        return [f"cpu:{level}" for level in self.levels] + [gpu.name for gpu in self.gpus]


def expand_targets(targets: Iterable[str]) -> Targets:
    """`cpu`, `cpu:native`, `cpu:aarch64`, `cuda:sm_90`, `rocm:gfx942` → what they name. Raises UsageError for an unknown one."""
    from ..runtime.cpu_info import available_levels
    from ..toolchain.c import LEVELS as known
    from .triton.target import TARGETS

    levels: list[str] = []
    gpus: list[GpuTarget] = []
    for text in targets:
        family, _, detail = text.partition(":")
        if text in TARGETS:
            gpus += [TARGETS[text]] if TARGETS[text] not in gpus else []
            continue
        if family != "cpu" or (detail and detail not in (*known, "native")):
            valid = ("cpu", "cpu:native", *[f"cpu:{name}" for name in known], *TARGETS)
            raise UsageError(f"unknown target {text!r}", nearest(text, valid))
        if not detail:
            found = [name for name in CPU_LEVELS if name in known]
        elif detail == "native":
            found = [name for name in available_levels() if name in known][:1]
            if not found:
                raise UnsupportedError("this CPU runs none of the known levels", "name a level, such as cpu:x86-64-v3")
        else:
            found = [detail]
        levels += [name for name in found if name not in levels]
    return Targets(tuple(levels), tuple(gpus))


def _block_bytes(cache: Cache) -> int:
    element = ELEMENT[cache.kind]
    scales = 2 * BLOCK * 4 if cache.kind in SCALED else 0
    return cache.groups * (BLOCK * (-(-cache.dk // 32) * 32 + -(-cache.dv // 16) * 16) * element + scales)


@dataclass(frozen=True)
class First:
    """The layers before a cut, for CPUs: what they hand on has `width` floats a token."""

    rendered: Rendered
    layers: int
    width: int


@dataclass(frozen=True)
class Emitted:
    """A graph's code before it is compiled: `rendered` for CPUs, `plans` for GPUs, one for each kind; either may be missing. `first`: the layers
    that CPUs compute before the plans do the rest. `tables`: as `place_caches` has it, in all targets of the file."""

    rendered: Rendered | None
    plans: list[tuple[GpuTarget, Lowered]]
    weights: list[WeightSpec]
    tables: str
    first: First | None = None

    @property
    def fallbacks(self) -> list[dict[str, str]]:
        if self.rendered is not None:
            return self.rendered.lowered.fallbacks
        before = self.first.rendered.lowered.fallbacks if self.first is not None else []
        return before + (self.plans[0][1].fallbacks if self.plans else [])

    def memory_plan(self) -> dict[str, int | list[int]]:
        """Bytes of the weights, of a cache block (one of every region), of a request's states over all layers, and of the buffers at the
        default step size; for each table of blocks, how many positions its layers see at most: `reaches`, 0 for all."""
        from .weights import packed_bytes

        rendered = self.rendered or (self.first.rendered if self.first is not None else None)
        on_cpu = [rendered.lowered] if rendered is not None else []
        parts: list[CpuLowered | Lowered] = [*on_cpu, *([self.plans[0][1]] if self.rendered is None else [])]
        caches = [cache for part in parts for cache in part.caches]
        places = place_caches(caches, self.tables)
        buffers = sum(s["tokens"] * STEP + s["rows"] * STEP_ROWS + s["fixed"] for part in parts for s in part.slots()[0])
        return {
            "weight_bytes": sum(map(packed_bytes, self.weights)),
            "cache_bytes_per_block": sum(max(_block_bytes(caches[i]) for i in held) for held in places.regions),
            "state_bytes_per_request": 4 * sum(sum(part.states) for part in on_cpu),
            "reaches": list(places.reaches),
            "buffer_bytes": buffers + sum(part.limits["shared_row_bytes"] * STEP for part in on_cpu),
        }

    def build(
        self, targets: Targets, cc: str, each: Callable[[Iterable[Any], str], Iterable[Any]], *, use_cache: bool = True
    ) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
        """The artifact's members under kernels/, and the manifest's entries of the targets."""
        from ..toolchain.c import build
        from .weights import packed_bytes

        files: dict[str, bytes] = {}
        entries: list[dict[str, Any]] = []

        def objects(rendered: Rendered, folder: str, levels: Iterable[str]) -> Iterator[tuple[str, str]]:
            """Each level and its member, compiled."""
            files.update({f"{folder}/source/{name}": text.encode() for name, text in rendered.sources.items()})
            for level in each(levels, "levels"):
                member = f"{folder}/{level}/step.so"
                files[member] = build(rendered.sources, level, cc, use_cache=use_cache)
                yield level, member

        if self.rendered is not None:
            for level, member in objects(self.rendered, "kernels/cpu", targets.levels):
                entries.append({
                    "name": f"cpu:{level}", "isa": level, "member": member, "bytes": len(files[member]), "weights": len(self.rendered.lowered.weights),
                    "kernels": list(self.rendered.kernels),
                })  # fmt: skip
        names = dict(zip((spec.key for spec in self.weights), unique_names(self.weights), strict=True))
        first = None
        if self.first is not None:
            made = self.first.rendered
            first = {
                "layers": self.first.layers, "width": self.first.width, "weights": [names[spec.key] for spec in made.lowered.weights],
                "levels": dict(objects(made, "kernels/first", targets.levels or CPU_LEVELS)), "kernels": list(made.kernels),
                "cache_bytes_per_block": sum(map(_block_bytes, made.lowered.caches)),
            }  # fmt: skip
        if self.plans:
            from .triton.build import build as build_plan
            from .triton.build import hip_sources, sources

            plans = [plan for _, plan in self.plans]
            for folder, texts in (("triton", sources(plans)), ("hip", hip_sources(plans))):
                files.update({f"kernels/{folder}/source/{name}": text.encode() for name, text in texts.items()})
            for gpu, plan in each(self.plans, "chips"):
                built = build_plan(plan, gpu, [names[spec.key] for spec in plan.weights], self.tables, use_cache=use_cache)
                folder = f"kernels/{gpu.family}/{gpu.arch}"
                files.update({f"{folder}/{name}": data for name, data in built.files.items()})
                entries.append({
                    "name": gpu.name, "isa": gpu.arch, "member": f"{folder}/plan.json", "bytes": sum(map(len, built.files.values())), "weights": len(plan.weights),
                    "kernels": list(built.kernels),
                } | ({"first": {**first, "device_weight_bytes": sum(map(packed_bytes, plan.weights))}} if first is not None else {}))  # fmt: skip
        return files, entries


def emit(
    graph: Graph, kv_dtype: str, targets: Targets, tuning: Tuning | None = None, gpu_layers: int = 0, fast: bool = False
) -> Emitted:
    """Lower a graph for the families of its targets, with the package's own tuning unless another is given. gpu_layers: the GPU's are the
    last so many layers and the head, the CPU's those before; 0, or no fewer than there are: all are the GPU's. fast: as `triton.lower.lower`
    has it. Raises UnsupportedError naming what one of them has no kernel for."""
    held: dict[tuple[object, ...], WeightSpec] = {}

    def named(specs: list[WeightSpec]) -> list[str]:
        """Names in the artifact, which follow from the weights that are known so far."""
        for spec in specs:
            held.setdefault(spec.key, spec)
        names = dict(zip(held, unique_names(list(held.values())), strict=True))
        return [names[spec.key] for spec in specs]

    rendered, first, plans = None, None, []
    parts = cut(graph, gpu_layers) if gpu_layers and targets.gpus else None
    tables = "one" if parts is not None else "alike" if targets.gpus else "each"
    if targets.levels or parts is not None:
        from .cpu.render import render

        rendered = render(graph, kv_dtype, tuning, tables=tables, named=named) if targets.levels else None
        if parts is not None:
            first = First(render(parts.first, kv_dtype, tuning, tables=tables, named=named), parts.layers, parts.width)
    if targets.gpus:
        from .triton.lower import lower

        plans = [(gpu, lower(parts.second if parts is not None else graph, kv_dtype, gpu, fast, tuning)) for gpu in targets.gpus]
        for _, plan in plans:
            named(plan.weights)
    return Emitted(rendered, plans, list(held.values()), tables, first)
