"""Sampling on the host, as the CPU's kernels do it (codegen/cpu/templates/sampling.h): for targets whose logits come from a device.

In this order: logit bias; repetition, presence and frequency penalties; at temperature 0 the largest, the lowest id among equals;
otherwise temperature, top-k, top-p, min-p, and a draw keyed by the request's seed and the token's place. No loop over the vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .sampling import Draw, SamplingRow

Row = npt.NDArray[np.float32]
MASK = (1 << 64) - 1


def mix64(x: int) -> int:
    """SplitMix64's finalizer."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed: int, counter: int) -> float:
    """A number from 0 to 1 for a seed and a place."""
    return (mix64(mix64(seed & MASK) ^ ((counter * 0xD1342543DE82EF95 + 1) & MASK)) >> 11) * 2.0**-53


def inverse(row: SamplingRow) -> float:
    """1 / temperature, bounded."""
    return 1.0 / row.temperature if row.temperature > 1e-30 else 1e30


def changes(row: SamplingRow) -> bool:
    """Whether a row changes its logits before it draws from them."""
    biased = row.bias_ids is not None and row.bias_ids.size > 0
    return biased or row.repetition_penalty != 1.0 or row.presence_penalty != 0.0 or row.frequency_penalty != 0.0


def choose(row: SamplingRow, logits: Row) -> int:
    """One token from a row of logits [V]."""
    x = penalized(row, logits) if changes(row) else logits
    return int(x.argmax()) if row.temperature == 0.0 else _draw(row, x)


def judged(token: int, logits: Row, top: int, logprobs: bool) -> Draw:
    """A token with its log-probability, of the raw logits [V], and the most likely ones if asked for."""
    if not logprobs:
        return Draw(token)
    z = log_sum(logits)
    best = _ranked(logits, min(top, logits.size))
    return Draw(token, float(logits[token] - z), [(int(i), float(logits[i] - z)) for i in best if logits[i] > -np.inf])


def log_sum(logits: Row) -> float:
    """log Σ exp, in float64."""
    most = float(logits.max())
    return most + float(np.log(np.exp(logits.astype(np.float64) - most).sum()))


def penalized(row: SamplingRow, logits: Row) -> Row:
    x = logits.copy()
    n = x.size
    if row.bias_ids is not None and row.bias is not None:
        inside = (row.bias_ids >= 0) & (row.bias_ids < n)
        np.add.at(x, row.bias_ids[inside], row.bias[inside])
    none = np.empty(0, np.int32)
    prompt, output = (a if a is not None else none for a in (row.prompt, row.output))
    if row.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate([prompt, output]))
        seen = seen[(seen >= 0) & (seen < n)]
        x[seen] = np.where(
            x[seen] > 0, x[seen] / np.float32(row.repetition_penalty), x[seen] * np.float32(row.repetition_penalty)
        )
    if row.presence_penalty != 0.0 or row.frequency_penalty != 0.0:
        seen, counts = np.unique(output[(output >= 0) & (output < n)], return_counts=True)
        x[seen] -= np.float32(row.presence_penalty) + counts.astype(np.float32) * np.float32(row.frequency_penalty)
    return x


def _ranked(x: Row, k: int) -> npt.NDArray[np.intp]:
    """The k largest in order, the lowest id first among equals."""
    if k <= 0:
        return np.empty(0, np.intp)
    return np.argsort(-x, kind="stable")[:k]


def _draw(row: SamplingRow, x: Row) -> int:
    n = x.size
    k = row.top_k if 0 < row.top_k < n else n
    filters = k < n or row.top_p < 1.0 or row.min_p > 0.0
    ids = _ranked(x, k) if filters else np.arange(n)
    ids = ids[x[ids] > -np.inf] if filters else ids
    if ids.size == 0:
        return int(x.argmax())
    values = np.exp((x[ids] - x[ids].max()) * np.float32(inverse(row))).astype(np.float64)
    if row.top_p < 1.0:
        before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
        keep = before < values.sum() * row.top_p
        keep[0] = True
        ids, values = ids[keep], values[keep]
    if row.min_p > 0.0:
        keep = values >= row.min_p * values[0]
        keep[0] = True
        ids, values = ids[keep], values[keep]
    sums = np.cumsum(values)
    at = uniform(row.seed, row.counter) * sums[-1]
    return int(ids[min(int(np.searchsorted(sums, at, side="right")), ids.size - 1)])
