"""The split executor: an artifact's first layers on the CPU, the others and the head on a GPU (`llmc compile --gpu-layers`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifact import Artifact
from ..drivers.driver import Driver
from ..sampling import Draw, SamplingRow
from .choose import target_entry
from .cpu import Batch, CpuExecutor, Ints
from .launch import LaunchExecutor


class SplitExecutor:
    """Runs steps of one artifact on both: the CPU's part hands a vector for each token to the GPU's. Owns both executors."""

    def __init__(self, artifact: Artifact, target: str, driver: Driver, *, threads: int, slots: int = 0, **sizes: Any) -> None:
        """`sizes`: those that both executors take."""
        first = target_entry(artifact, target)["first"]
        self._first = CpuExecutor(artifact, threads=threads, slots=slots, first=first, **sizes)
        self._rest = LaunchExecutor(artifact, target, driver, carry=int(first["width"]), **sizes)
        self.artifact, self.level = artifact, target
        self.mixed_tokens = self._first.mixed_tokens
        self.blocks, self.vocabulary = self._rest.blocks, self._rest.vocabulary

    def run(self, batch: Batch) -> None:
        """Compute a step; `logits` and `sample` then see its rows."""
        self._first.run(batch)
        self._rest.run(batch, self._first.logits(int(batch.ids.size)))

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """The last step's logits [rows, V]."""
        return self._rest.logits(rows)

    def sample(self, rows: Sequence[SamplingRow], top: int = 0, logprobs: bool = False) -> list[Draw]:
        """Draw one token for each row of the last step."""
        return self._rest.sample(rows, top, logprobs)

    def score(self, targets: Ints) -> npt.NDArray[np.float32]:
        """Log-probability of one target for each row of the last step."""
        return self._rest.score(targets)

    def copy_block(self, source: int, target: int) -> None:
        self._first.copy_block(source, target)
        self._rest.copy_block(source, target)

    def copy_state(self, source: int, target: int) -> None:
        """Copy the states of recurrent layers, which are the CPU's, from one slot to another."""
        self._first.copy_state(source, target)

    def portable(self, on: bool) -> None:
        """Whether the CPU's products keep to the arithmetic of all levels."""
        self._first.portable(on)

    def close(self) -> None:
        self._first.close()
        self._rest.close()
