"""Conformance: the artifact's logits by the compiled kernels, against the original weights run by the reference executor."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

PROBE_TOKENS = 256
PROBE = (
    "The first computers filled whole rooms and were programmed by plugging cables into boards. Today a telephone holds more memory "
    "than all of them together, and the programs that run on it were written by people who never saw a punched card.\n\n"
    "def greatest_common_divisor(a: int, b: int) -> int:\n    while b:\n        a, b = b, a % b\n    return a\n\n"
    "Q: What is the capital of France?\nA: The capital of France is Paris, a city of about two million people on the river Seine.\n\n"
    "Der Fluss trat über die Ufer, und die Brücke musste gesperrt werden. La lluvia no paró hasta la mañana siguiente.\n"
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144. The sum of the first ten numbers of this sequence is 143.\n\n"
    "Once there was a lighthouse keeper who counted ships. Every evening she wrote down how many had passed, and every morning she read "
    "the list aloud to the gulls, who did not seem to mind that it was always a little different from what they remembered.\n"
)


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Row-wise, in float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """KL(reference ‖ candidate) in nats for each row of logits [n, V]."""
    p, q = log_softmax(reference.astype(np.float64)), log_softmax(candidate.astype(np.float64))
    return np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)


def compare(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> dict[str, float]:
    """kl_mean, kl_p99 (nats), top1 (share of equal most likely tokens) and max_abs (logits), rounded to 3 digits."""
    kl = divergence(reference, candidate)
    top1 = (reference.argmax(-1) == candidate.argmax(-1)).mean()
    largest = np.abs(reference.astype(np.float64) - candidate.astype(np.float64)).max()
    return {
        k: round_digits(float(v))
        for k, v in (("kl_mean", kl.mean()), ("kl_p99", np.quantile(kl, 0.99)), ("top1", top1), ("max_abs", largest))
    }


def round_digits(value: float, digits: int = 3) -> float:
    """Three significant digits: what a figure may say about a machine that it was not measured on."""
    return float(f"{value:.{digits}g}")
