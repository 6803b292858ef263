"""Stored weights by transformers' parameter names: their codes and scales, moved as the loader moves the weights themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...compiler.checkpoint import BoundWeights, Checkpoint
from ...errors import CheckpointError
from ..scheme import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VIEWS = ("codes", "scales", "zeros", "offsets", "groups", "number")


class BoundStored:
    """`schemes` says which parameters keep their codes, and under which scheme; `view` reads them.

    Reads each stored weight once to learn its scheme. `dense` gives the reason for each that is used dequantized.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self._read = checkpoint.stored
        self._known: dict[str, tuple[Scheme, tuple[int, ...], float | None]] = {}
        self.notes: list[str] = []
        self.dense: dict[str, str] = {}
        self._numbers: dict[Scheme, int] = {}
        for name, read in checkpoint.stored.items():
            stored = read().settled()
            if stored.scheme is None:
                self.dense[name] = stored.why
                continue
            assert stored.codes is not None
            *lead, n, k = stored.codes.shape
            self._known[name] = (stored.scheme, (*lead, k, n) if stored.across else (*lead, n, k), stored.input_scale)
            if stored.note and stored.note not in self.notes:
                self.notes.append(stored.note)
            self._numbers.setdefault(stored.scheme, len(self._numbers))
        self._bound: dict[str, BoundWeights] = {}
        if self._known:
            for view in VIEWS:
                readers: dict[str, Callable[[], torch.Tensor]] = {n: partial(self._view, n, view) for n in self._known}
                self._bound[view] = replace(checkpoint, readers=readers).bind(model)
        self._schemes: dict[str, Scheme | None] = {}

    def _view(self, name: str, view: str) -> torch.Tensor:
        scheme, shape, _ = self._known[name]
        if view == "number":
            return torch.full(shape, self._numbers[scheme], dtype=torch.int32)  # in the order of the parameter
        return self._read[name]().settled().view(view)

    def scheme(self, name: str) -> Scheme | None:
        """The scheme that all of a parameter's codes have; None where it has none, or several."""
        if name not in self._schemes:
            self._schemes[name] = self._find(name)
        return self._schemes[name]

    def _find(self, name: str) -> Scheme | None:
        if not self._bound:
            return None
        try:
            numbers = self._bound["number"](name)
        except (CheckpointError, RuntimeError, ValueError, KeyError, IndexError):  # stored plainly, or only in part
            return None
        first = int(numbers.flatten()[0])
        if not bool((numbers == first).all()):
            self.dense[name] = "its parts are stored under different schemes"
            return None
        return next(s for s, n in self._numbers.items() if n == first)

    def view(self, name: str, view: str) -> torch.Tensor:
        return self._bound[view](name)

    def input_scale(self, name: str) -> float:
        """The tensor scale of a parameter's activations."""
        found = self._known.get(self._bound["number"].stored_name(name))
        assert found is not None and found[2] is not None, name
        return found[2]
