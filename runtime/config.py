"""Run-time settings, resolved once against the artifact before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .artifact import Artifact
from .cpu_info import free_memory, memory_limit, usable_cpus
from .executors.choose import choose_target, device_free_bytes, is_gpu, target_entry
from .plan import blocks_for, positions_within, reaches, slots_for, state_bytes
from .sizes import parse_size, show_size

FAST = "compiled with --fast-nondeterministic: on rocm a request's bits depend on what else is in its batch"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """threads; tokens a step; requests at once; logit rows a step; positions a request; cache blocks; slots for states; the target to
    run; whether bfloat16 products keep to the arithmetic of all CPU levels; `notes` are for a person."""

    threads: int
    max_tokens: int
    max_batch: int
    max_rows: int
    context: int
    blocks: int
    slots: int
    target: str
    portable: bool = False
    notes: tuple[str, ...] = ()

    @staticmethod
    def resolve(
        artifact: Artifact,
        *,
        threads: int | None = None,
        kv_cache: str | int | None = None,
        max_batch: int | None = None,
        target: str = "",
        isa: str = "",
        portable: bool = False,
        max_tokens: int = 512,
        max_rows: int = 64,
    ) -> RunConfig:
        """Raises UsageError for an impossible setting and EnvironmentLacks for a target that is not there."""
        chosen = choose_target(artifact, target, isa)
        usable = usable_cpus()
        count = usable if threads is None else threads
        if not 1 <= count <= 256:
            raise UsageError(f"{count} threads are impossible", f"this process may use {usable}")
        batch = 64 if max_batch is None else max_batch
        if not 1 <= batch <= 4096:
            raise UsageError(f"--max-batch {batch} is impossible", "give a number from 1 to 4096")
        manifest = artifact.manifest
        context = int(manifest["model"]["context"])
        budget = parse_size(kv_cache) if kv_cache is not None else None
        weights = int(manifest["memory_plan"]["weight_bytes"])
        if is_gpu(chosen):
            total = free = device_free_bytes(chosen)
            first = target_entry(artifact, chosen).get("first")
            if first is None:
                free -= weights
            else:  # the device holds its own layers' weights and cache, the host's memory the others
                whole, there = (int(d["cache_bytes_per_block"]) for d in (manifest["memory_plan"], first))
                free = (free - int(first["device_weight_bytes"])) * whole // max(1, whole - there)
                free, total = min(free, free_memory()), memory_limit()
        else:
            total, free = memory_limit(), free_memory()
        slots = slots_for(manifest, budget, batch, free)
        states = slots * state_bytes(manifest)
        blocks = blocks_for(manifest, budget - states if budget is not None else None, batch, context, free)
        cache = blocks * max(1, int(manifest["memory_plan"]["cache_bytes_per_block"]))
        needed = weights + int(manifest["memory_plan"]["buffer_bytes"]) + cache + states
        if budget is not None and max(needed, budget) > total:
            room = max(0, total - (needed - cache))
            raise UsageError(
                f"--kv-cache {kv_cache} is more than there is: with {show_size(weights)} of weights it needs {show_size(needed)}, and there are {show_size(total)}",
                f"give --kv-cache at most {show_size(room)}" if room else "the weights alone fill the memory",
            )
        notes = []
        if chosen.startswith("rocm:") and manifest["recipe"].get("fast_nondeterministic"):
            notes.append(FAST)
        if budget is not None and cache + states < budget // 2:
            notes.append(
                f"of --kv-cache {kv_cache} only {show_size(cache + states)} can be used by {batch} requests of {context} positions"
            )
        tokens = max(max_tokens, batch)
        return RunConfig(
            count,
            tokens,
            batch,
            max(batch, max_rows),
            positions_within(blocks, reaches(manifest), tokens, context),
            blocks,
            slots,
            chosen,
            portable,
            tuple(notes),
        )
