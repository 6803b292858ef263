"""Packed weights of the file that a compile replaces, used again where they would come out the same."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path

import torch

from ..compiler.ir.graph import Graph, Value
from ..errors import LlmcError
from ..runtime.artifact import Artifact, open_artifact
from .lowering import WeightSpec

ROOT = Path(__file__).parent.parent
ROOMS = ("compiler", "passes", "quant", "codegen")


@cache
def code_digest() -> str:
    """What computes packed weights: this package's own code, and torch."""
    found = hashlib.sha256(torch.__version__.encode())
    for path in sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def packing_keys(graph: Graph, specs: list[WeightSpec], origin: str) -> list[str]:
    """What each tensor's bytes follow from, hashed: how it is packed, the nodes and parameters that it is made of, and `origin`, what those
    parameters' values follow from."""
    made = graph.producers()
    hashes: dict[str, str] = {}

    def of(value: Value) -> str:
        if value.name not in hashes:
            node = made.get(value.name)
            said: object = (
                (value.name, value.type, graph.constants.get(value.name))
                if node is None
                else (
                    node.op.name,
                    node.op.attributes(),
                    [v.name for v in node.outputs].index(value.name),
                    [of(v) for v in node.inputs],
                )
            )
            hashes[value.name] = hashlib.sha256(repr(said).encode()).hexdigest()
        return hashes[value.name]

    def key(spec: WeightSpec) -> str:
        said = (origin, code_digest(), spec.pack, repr(spec.scheme), spec.gated, [of(v) for v in spec.values])
        return hashlib.sha256(repr(said).encode()).hexdigest()[:32]

    return [key(spec) for spec in specs]


class Replaced:
    """The artifact at a path, if there is one that can be read."""

    def __init__(self, path: Path | None) -> None:
        self._held: dict[str, str] = {}
        self._artifact: Artifact | None = None
        if path is None or not path.is_file():
            return
        with suppress(LlmcError):
            self._artifact = open_artifact(path)
            keys, names = self._artifact.manifest.get("packing") or [], [name for name, _ in self._artifact.manifest["weights"]]
            self._held = dict(zip(keys, names, strict=True)) if len(keys) == len(names) else {}

    @cached_property
    def _whole(self) -> bool:
        """Whether its weights are what its manifest says."""
        with suppress(LlmcError):
            if self._artifact is not None:
                self._artifact.check_weights()
                return True
        return False

    def tensor(self, key: str) -> memoryview | None:
        """The bytes that were packed under a key."""
        name = self._held.get(key)
        return self._artifact.tensor(name) if self._artifact is not None and name is not None and self._whole else None

    def close(self) -> None:
        if self._artifact is not None:
            self._artifact.close()
