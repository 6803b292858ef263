"""The manifest's shape: everything that readers rely on, checked once when an artifact is opened."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .cpu_info import LEVELS

LARGEST = 1 << 48
"""No size, count or id of an artifact is larger."""
GPU_FAMILIES = ("cuda", "rocm")

Rule = Callable[[Any], str]
"""What is wrong with a value; empty when nothing is."""


def parse(raw: bytes) -> Any:
    """JSON with finite numbers alone. Raises ValueError or RecursionError."""

    def constant(name: str) -> float:
        raise ValueError(f"{name} is no number")

    return json.loads(raw, parse_constant=constant)


def whole(value: Any) -> str:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST
    return "" if fits else "is not a whole number of a possible size"


def number(value: Any) -> str:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return "" if fits else "is not a number"


def text(value: Any) -> str:
    return "" if isinstance(value, str) else "is not text"


def positive(value: Any) -> str:
    return whole(value) or ("" if value > 0 else "is zero")


def anything(value: Any) -> str:
    return ""


@dataclass(frozen=True)
class Each:
    """A list, every item by one rule."""

    rule: Rule

    def __call__(self, value: Any) -> str:
        if not isinstance(value, list):
            return "is not a list"
        return next((f"item {i} {wrong}" for i, item in enumerate(value) if (wrong := self.rule(item))), "")


@dataclass(frozen=True)
class Fields:
    """An object with these fields; `optional` ones may be missing or null; further ones are left alone."""

    needed: Mapping[str, Rule]
    optional: Mapping[str, Rule] | None = None

    def __call__(self, value: Any) -> str:
        if not isinstance(value, dict):
            return "is not an object"
        for name, rule in self.needed.items():
            if name not in value:
                return f"has no {name}"
            if wrong := rule(value[name]):
                return f"{name} {wrong}"
        for name, rule in (self.optional or {}).items():
            if value.get(name) is not None and (wrong := rule(value[name])):
                return f"{name} {wrong}"
        return ""


@dataclass(frozen=True)
class Texts:
    """An object whose values are text."""

    def __call__(self, value: Any) -> str:
        return "" if isinstance(value, dict) and all(isinstance(v, str) for v in value.values()) else "is not an object of texts"


def weight(value: Any) -> str:
    fits = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    return whole(value[1]) if fits else "is not a name and a size"


def ids(value: Any) -> str:
    return Each(whole)(value if isinstance(value, list) else [value])


MODEL = Fields(
    {"architecture": text, "parameters": whole, "context": positive, "vocab": positive, "dtype": text, "kv_dtype": text},
    {"type": text, "bos_token_id": ids, "eos_token_id": ids},
)
KERNEL = Fields(
    {"name": text, "kernel": text, "scheme": text, "calls": whole, "weight_bytes": whole, "operations": whole},
    {"modules": Each(text), "reason": text, "operations_a_position": whole, "experts": Each(whole)},
)
FIRST = Fields({
    "layers": positive, "width": positive, "weights": Each(text), "levels": Texts(), "kernels": Each(KERNEL), "cache_bytes_per_block": whole, "device_weight_bytes": whole,
})  # fmt: skip
TARGET = Fields(
    {"name": text, "isa": text, "member": text, "bytes": whole, "kernels": Each(KERNEL)}, {"weights": whole, "first": FIRST}
)
PLAN = Fields(
    {"weight_bytes": whole, "cache_bytes_per_block": whole, "buffer_bytes": whole},
    {"state_bytes_per_request": whole, "reaches": Each(whole)},
)
MANIFEST = Fields(
    {
        "llmc": text,
        "source": Fields({"sha256": text, "files": Each(text)}),
        "toolchain": Texts(),
        "model": MODEL,
        "recipe": Fields({}),
        "targets": Each(TARGET),
        "quant": Texts(),
        "weights": Each(weight),
        "memory_plan": PLAN,
        "fallbacks": Each(Fields({"module": text, "op": text, "reason": text})),
        "notes": Each(text),
        "conformance": Fields({}, {"kl_mean": number, "kl_p99": number, "top1": number, "max_abs": number, "skipped": text}),
        "canary": Fields({}, {"sequences": Each(Each(whole)), "sha256": Each(text)}),
        "members": Each(Fields({"name": text, "bytes": whole, "sha256": text})),
    },
    {"packing": Each(text)},
)


def problem(manifest: Any) -> str:
    """What is wrong with a manifest; empty when it is as `llmc compile` writes it."""
    wrong = MANIFEST(manifest)
    if wrong:
        return wrong
    members = {m["name"] for m in manifest["members"]}
    for target in manifest["targets"]:
        family, _, detail = target["name"].partition(":")
        if detail != target["isa"] or family not in ("cpu", *GPU_FAMILIES) or (family == "cpu" and detail not in LEVELS):
            return f"the target {target['name'][:40]} is none that this llmc knows"
        if target["member"] not in members:
            return f"the target {target['name']} has no {target['member'][:80]}"
        first = target.get("first") or {"levels": {}, "weights": []}
        if not set(first["levels"]) <= set(LEVELS) or not set(first["levels"].values()) <= members:
            return f"the layers before those of {target['name']} have no kernels"
        if not set(first["weights"]) <= {name for name, _ in manifest["weights"]}:
            return f"the layers before those of {target['name']} read weights that are not listed"
    return _canary_problem(manifest["canary"], manifest["model"])


def _canary_problem(canary: dict[str, Any], model: dict[str, Any]) -> str:
    if not canary:
        return ""
    sequences, hashes = canary.get("sequences"), canary.get("sha256")
    if not sequences or not hashes or len(sequences) != len(hashes):
        return "the canary has not a hash for each of its sequences"
    for sequence in sequences:
        if not 0 < len(sequence) <= model["context"] or max(sequence) >= model["vocab"]:
            return "a sequence of the canary does not fit the model"
    return ""
