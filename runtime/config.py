"""Run-time settings, resolved once against the artifact before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import EnvironmentLacks, UsageError
from .artifact import Artifact
from .cpu_info import usable_cpus
from .plan import BLOCK, blocks_for, slots_for, state_bytes
from .sizes import parse_size


@dataclass(frozen=True, slots=True)
class RunConfig:
    """threads; tokens a step; requests at once; logit rows a step; positions a request; cache blocks; slots for states; instruction-set level ("" picks);
    whether bfloat16 products keep to the arithmetic of all levels."""

    threads: int
    max_tokens: int
    max_batch: int
    max_rows: int
    context: int
    blocks: int
    slots: int
    isa: str
    portable: bool = False

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
        if target:
            family, _, level = target.partition(":")
            if family != "cpu":
                raise EnvironmentLacks(
                    f"{artifact.path.name} holds no kernels for {target}",
                    f"it holds {', '.join(t['name'] for t in artifact.manifest['targets'])}",
                )
            isa = isa or level
        usable = usable_cpus()
        count = usable if threads is None else threads
        if not 1 <= count <= 256:
            raise UsageError(f"{count} threads are impossible", f"this process may use {usable}")
        batch = 64 if max_batch is None else max_batch
        if not 1 <= batch <= 4096:
            raise UsageError(f"--max-batch {batch} is impossible", "give a number from 1 to 4096")
        context = int(artifact.manifest["model"]["context"])
        budget = parse_size(kv_cache) if kv_cache is not None else None
        slots = slots_for(artifact.manifest, budget, batch)
        blocks = blocks_for(
            artifact.manifest, budget - slots * state_bytes(artifact.manifest) if budget is not None else None, batch, context
        )
        tokens = max(max_tokens, batch)
        return RunConfig(count, tokens, batch, max(batch, max_rows), min(context, blocks * BLOCK), blocks, slots, isa, portable)
