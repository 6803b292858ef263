"""Everything that a graph becomes for the targets that are asked for: lowered once a family, over one list of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..compiler.ir.graph import Graph
from ..errors import UnsupportedError, UsageError, nearest
from ..runtime.plan import BLOCK, STEP
from .lowering import Cache, WeightSpec, place_caches, unique_names
from .tuning import Tuning

if TYPE_CHECKING:
    from .cpu.render import Rendered
    from .triton.lower import Lowered
    from .triton.target import GpuTarget

ELEMENT = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "e4m3": 1}
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
    scales = 2 * BLOCK * 4 if element == 1 else 0
    return cache.groups * (BLOCK * (-(-cache.dk // 32) * 32 + -(-cache.dv // 16) * 16) * element + scales)


@dataclass(frozen=True)
class Emitted:
    """A graph's code before it is compiled: `rendered` for CPUs, `plans` for GPUs, one for each kind; either may be missing."""

    rendered: Rendered | None
    plans: list[tuple[GpuTarget, Lowered]]
    weights: list[WeightSpec]

    @property
    def fallbacks(self) -> list[dict[str, str]]:
        return self.rendered.lowered.fallbacks if self.rendered is not None else self.plans[0][1].fallbacks if self.plans else []

    def memory_plan(self) -> dict[str, int | list[int]]:
        """Bytes of the weights, of a cache block (one of every region), of a request's states over all layers, and of the buffers at the
        default step size; for each table of blocks, how many positions its layers see at most: `reaches`, 0 for all."""
        from .weights import packed_bytes

        lowered = self.rendered.lowered if self.rendered is not None else self.plans[0][1]
        places = place_caches(lowered.caches, alike=bool(self.plans))
        block = sum(max(_block_bytes(lowered.caches[i]) for i in held) for held in places.regions)
        slots, _ = lowered.slots()
        buffers = sum(s["tokens"] * STEP + s["rows"] * STEP_ROWS + s["fixed"] for s in slots)
        states = 0
        if self.rendered is not None:
            buffers += self.rendered.lowered.limits["shared_row_bytes"] * STEP
            states = 4 * sum(self.rendered.lowered.states)
        return {
            "weight_bytes": sum(map(packed_bytes, self.weights)),
            "cache_bytes_per_block": block,
            "state_bytes_per_request": states,
            "reaches": list(places.reaches),
            "buffer_bytes": buffers,
        }

    def build(
        self, targets: Targets, cc: str, each: Callable[[Iterable[Any], str], Iterable[Any]], *, use_cache: bool = True
    ) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
        """The artifact's members under kernels/, and the manifest's entries of the targets."""
        files: dict[str, bytes] = {}
        entries: list[dict[str, Any]] = []
        if self.rendered is not None:
            from ..toolchain.c import build

            files.update({f"kernels/cpu/source/{name}": text.encode() for name, text in self.rendered.sources.items()})
            for level in each(targets.levels, "levels"):
                binary = build(self.rendered.sources, level, cc, use_cache=use_cache)
                member = f"kernels/cpu/{level}/step.so"
                files[member] = binary
                entries.append({
                    "name": f"cpu:{level}", "isa": level, "member": member, "bytes": len(binary), "weights": len(self.rendered.lowered.weights),
                    "kernels": list(self.rendered.kernels),
                })  # fmt: skip
        if self.plans:
            from .triton.build import build as build_plan
            from .triton.build import sources

            held = sources([plan for _, plan in self.plans])
            files.update({f"kernels/triton/source/{name}": text.encode() for name, text in held.items()})
            names = dict(zip((spec.key for spec in self.weights), unique_names(self.weights), strict=True))
            for gpu, plan in each(self.plans, "chips"):
                built = build_plan(plan, gpu, [names[spec.key] for spec in plan.weights], use_cache=use_cache)
                folder = f"kernels/{gpu.family}/{gpu.arch}"
                files.update({f"{folder}/{name}": data for name, data in built.files.items()})
                entries.append({
                    "name": gpu.name, "isa": gpu.arch, "member": f"{folder}/plan.json", "bytes": sum(map(len, built.files.values())), "weights": len(plan.weights),
                    "kernels": list(built.kernels),
                })  # fmt: skip
        return files, entries


def emit(graph: Graph, kv_dtype: str, targets: Targets, tuning: Tuning | None = None) -> Emitted:
    """Lower a graph for the families of its targets, with the package's own tuning unless another is given. Raises UnsupportedError
    naming what one of them has no kernel for."""
    rendered, plans = None, []
    weights: list[WeightSpec] = []
    if targets.levels:
        from .cpu.render import render

        rendered = render(graph, kv_dtype, tuning, alike=bool(targets.gpus))
        weights += rendered.lowered.weights
    if targets.gpus:
        from .triton.lower import lower

        plans = [(gpu, lower(graph, kv_dtype, gpu)) for gpu in targets.gpus]
        held = {spec.key: spec for spec in weights}
        for spec in (spec for _, plan in plans for spec in plan.weights):
            held.setdefault(spec.key, spec)
        weights = list(held.values())
    return Emitted(rendered, plans, weights)
