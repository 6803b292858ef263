"""What a request asks of sampling, and what one draw gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """A request's settings, resolved once: temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 filter nothing.

    `logprobs` is how many alternatives to report for each token (None: no log-probabilities at all).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 16
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None

    @property
    def counts_tokens(self) -> bool:
        """Whether the penalties need the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(slots=True)
class SamplingRow:
    """One row of a step to draw from: the settings as the kernel takes them. Arrays are int32 (bias float32). Not frozen: one is made
    for each token, and a frozen one takes four times as long."""

    row: int
    temperature: float
    top_p: float
    min_p: float
    top_k: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    counter: int
    prompt: npt.NDArray[np.int32] | None = None
    output: npt.NDArray[np.int32] | None = None
    bias_ids: npt.NDArray[np.int32] | None = None
    bias: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class Draw:
    """A sampled token; its log-probability and the most likely alternatives when they were asked for."""

    token: int
    logprob: float = 0.0
    top: list[tuple[int, float]] = field(default_factory=list)
