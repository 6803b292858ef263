"""Perplexity of an artifact on a text, by its compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError, UsageError
from .api import Model
from .scheduler import Step


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids of one window, the beginning-of-text token included if there is one; predictions start after the first."""

    ids: npt.NDArray[np.int32]

    @property
    def predictions(self) -> int:
        return int(self.ids.size) - 1


def windows(model: Model, text: str, size: int, limit: int | None = None) -> list[Window]:
    """Tokenize once without special tokens, cut into windows of `size`; a shorter last one is dropped.

    If the tokenizer adds a beginning-of-text token it precedes each window. Raises UsageError when not one window comes out.
    """
    if size < 2:
        raise UsageError(f"a window of {size} tokens predicts nothing", "give --window at least 2")
    bos = model.tokenizer.bos_id
    if size + (bos is not None) > model.config.context:
        raise UsageError(
            f"a window of {size} tokens is longer than the {model.config.context} positions served", "give a smaller --window"
        )
    ids = model.tokenizer.encode(text, special=False)
    if len(ids) < size:
        raise InputError(f"the text has {len(ids)} tokens, one window takes {size}", "give a longer text or a smaller --window")
    cut = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)][:limit]
    return [Window(np.array(([bos] if bos is not None else []) + w, np.int32)) for w in cut]


def log_probabilities(model: Model, batch: list[Window]) -> list[npt.NDArray[np.float32]]:
    """Log-probability of each window's tokens after the first, each given those before it."""
    out = [np.empty(w.predictions, np.float32) for w in batch]
    engine = model.new_engine()

    def visit(step: Step, index: dict[int, int]) -> None:
        targets, places = [], []
        for part in step.slices:
            which = index[part.sequence.number]
            ids = batch[which].ids
            for position in range(part.start, part.start + part.rows):
                last = position + 1 >= ids.size
                targets.append(0 if last else int(ids[position + 1]))
                places.append(None if last else (which, position))
        scores = model.executor.score(np.array(targets, np.int32))
        for place, score in zip(places, scores, strict=True):
            if place is not None:
                out[place[0]][place[1]] = score

    engine.force([w.ids for w in batch], visit)
    return out


def perplexity(model: Model, cut: list[Window], progress: Iterable[int] | None = None) -> dict[str, float | int]:
    """perplexity, nll (mean, nats), tokens (predictions) and windows."""
    total, count = 0.0, 0
    for i in progress if progress is not None else range(len(cut)):
        (scores,) = log_probabilities(model, [cut[i]])
        total -= float(scores.astype(np.float64).sum())
        count += int(scores.size)
    nll = total / count
    return {"perplexity": math.exp(min(nll, 700.0)), "nll": nll, "tokens": count, "windows": len(cut)}


def window_logits(model: Model, cut: list[Window]) -> Iterator[npt.NDArray[np.float32]]:
    """Logits of each window's predictions, [predictions, V]."""
    for window in cut:
        yield model.logits([window.ids.tolist()])[0][:-1]
