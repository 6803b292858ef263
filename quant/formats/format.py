"""What a format is: how a tool lays quantized weights out in a checkpoint. One file a format, listed in formats/registry.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from ...compiler.checkpoint import StoredCache
from ...errors import CheckpointError
from ..stored import Stored

Parts = Mapping[str, Callable[[], torch.Tensor]]


class Format(ABC):
    """Reads one format. `config` is the checkpoint's quantization configuration, `metadata` its files' own."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, config: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        self.config, self.metadata = config, metadata

    @classmethod
    @abstractmethod
    def recognizes(cls, config: Mapping[str, Any], names: frozenset[str]) -> bool:
        """Whether a checkpoint with this configuration and these tensors is of this format."""

    def part(self, name: str) -> tuple[str, str] | None:
        """(weight, part) for a tensor that is a part of a stored weight; None for one that stands for itself."""
        module, _, suffix = name.rpartition(".")
        return (f"{module}.weight", suffix) if suffix in self.suffixes else None

    def complete(self, parts: Parts) -> bool:
        """Whether these parts make up a stored weight. A weight of a quantized checkpoint may be stored plainly."""
        return set(parts) != {"weight"}

    @abstractmethod
    def read(self, weight: str, parts: Parts) -> Stored:
        """The stored weight. Raises CheckpointError when a part is missing or has an impossible shape."""

    def cache(self, readers: Parts) -> StoredCache | None:
        """The key/value cache that the checkpoint asks for, if it does; `readers` are all its tensors."""
        return None

    @staticmethod
    def need(weight: str, parts: Parts, *names: str) -> list[torch.Tensor]:
        """Those parts; raises CheckpointError naming the first that is missing."""
        for name in names:
            if name not in parts:
                raise CheckpointError(f"{weight} is stored without its {name}", "the checkpoint is incomplete")
        return [parts[name]() for name in names]
