"""The memory plan: how many bytes a number of requests at a context length takes, from the manifest alone. And what a plan of launches and
its executor agree on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from ..errors import ArtifactError, UsageError

BLOCK = 32
"""Positions in a cache block."""
SPLIT = 256
"""Attention closes its sums at positions that are multiples of this."""
PLAN_VERSION = 5
"""Of a GPU's plan of launches."""
ONE, ONE_SPLITS, FEW_SPLITS, SPLITS, SHORT, OTHER = STEPS = 1, 2, 3, 4, 5, 6
"""What a step asks of a plan's attention, its symbol STEP: few sequences of one token each, within one split or not; each split of a row on its
own, of few sequences or of more; few tokens a sequence, a row's splits in turn; any other."""
REQUESTS = (1, 8, 64)
STEP = 512
"""Tokens of a step, by default."""


def held_blocks(positions: int, reaches: Sequence[int], step: int) -> int:
    """Cache blocks that a request of that many positions holds at most, in a table for each of `reaches`: where no layer sees beyond
    so many positions (0: one sees all), the blocks before them are free, and a step adds up to `step` positions."""
    whole = -(-positions // BLOCK)
    return sum(min(whole, -(-(reach + step) // BLOCK) + 1) if reach else whole for reach in reaches)


def positions_within(blocks: int, reaches: Sequence[int], step: int, most: int) -> int:
    """How many positions, up to `most`, a request may have that holds at most that many blocks."""
    columns = range(-(-most // BLOCK) + 1)
    return min(most, BLOCK * (bisect_right(columns, blocks, key=lambda n: held_blocks(n * BLOCK, reaches, step)) - 1))


def reaches(manifest: dict[str, Any]) -> tuple[int, ...]:
    """For each table of cache blocks, how many positions the layers that use it see at most; 0 for all."""
    return tuple(manifest["memory_plan"].get("reaches", (0,)))


def check_block_tables(name: str, manifest: dict[str, Any], taken: int) -> None:
    """Raise ArtifactError where an artifact's kernels take another number of block tables than its memory plan lists."""
    listed = len(reaches(manifest))
    if taken != listed:
        raise ArtifactError(
            f"{name}: its kernels take {taken} block tables, its memory plan lists {listed}", "fetch or compile it again"
        )


def request_blocks(manifest: dict[str, Any], context: int, step: int = STEP) -> int:
    """Cache blocks that a request of `context` positions holds at most."""
    return held_blocks(context, reaches(manifest), step)


def cache_bytes_read(manifest: dict[str, Any], positions: int) -> float:
    """Bytes of the cache that the layers see from one position, after that many."""
    plan = manifest["memory_plan"]
    return sum(min(positions, reach or positions) for reach in reaches(manifest)) * int(plan["cache_bytes_per_block"]) / BLOCK


def cache_bytes(manifest: dict[str, Any], requests: int, context: int) -> int:
    """Bytes of key/value cache for that many requests of that many positions each."""
    return requests * request_blocks(manifest, context) * int(manifest["memory_plan"]["cache_bytes_per_block"])


def state_bytes(manifest: dict[str, Any]) -> int:
    """Bytes of one sequence's recurrent states."""
    return int(manifest["memory_plan"].get("state_bytes_per_request", 0))


def total_bytes(manifest: dict[str, Any], requests: int, context: int) -> int:
    """Weights, cache, states and buffers."""
    plan = manifest["memory_plan"]
    fixed = int(plan["weight_bytes"]) + int(plan["buffer_bytes"])
    return fixed + cache_bytes(manifest, requests, context) + requests * state_bytes(manifest)


def memory_table(manifest: dict[str, Any]) -> list[dict[str, int]]:
    """What `llmc inspect` shows: bytes at several numbers of requests and context lengths."""
    most = int(manifest["model"]["context"])
    contexts = sorted({min(c, most) for c in (4096, 32768, 131072)} | {most})
    return [{"requests": r, "context": c, "bytes": total_bytes(manifest, r, c)} for r in REQUESTS for c in contexts]


def blocks_for(manifest: dict[str, Any], budget: int | None, max_batch: int, context: int, free_bytes: int) -> int:
    """Cache blocks within a budget in bytes (default: for max_batch requests, as far as half of `free_bytes` goes).

    Raises UsageError when not even one request of one block fits: an impossible setting is an error at the start.
    """
    per_block = max(1, int(manifest["memory_plan"]["cache_bytes_per_block"]))
    one = request_blocks(manifest, context)
    enough = max_batch * one
    if budget is None:
        return max(1 + one, min(enough, max(free_bytes, 0) // 2 // per_block))
    blocks = budget // per_block
    least = 2 * len(reaches(manifest))
    if blocks < least:
        raise UsageError(
            f"a cache of {budget} bytes holds no request: {BLOCK} positions take {least // 2 * per_block} bytes",
            f"give --kv-cache at least {least * per_block} bytes",
        )
    return int(min(blocks, enough))


def slots_for(manifest: dict[str, Any], budget: int | None, max_batch: int, free_bytes: int) -> int:
    """Slots for recurrent states: one for each of max_batch requests and as many for snapshots of prefixes, within half of the
    budget (default: of half of `free_bytes`). 0 for a model without such states. Raises UsageError when not one fits."""
    size = state_bytes(manifest)
    if size == 0:
        return 0
    most = (max(free_bytes, 0) // 2 if budget is None else budget) // 2 // size
    if most < 1 and budget is not None:
        raise UsageError(
            f"a cache of {budget} bytes holds no request: the states of one take {size} bytes, half of it",
            f"give --kv-cache at least {2 * size} bytes",
        )
    return max(1, min(most, 2 * max_batch))
