"""The algorithms by name. A new one costs its file and a line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import UsageError, nearest
from .awq import Awq
from .gptq import Gptq, GptqPlain
from .grid import Clipped
from .smoothquant import SmoothQuant

if TYPE_CHECKING:
    from ..calibrate import Rounding, Scaling

SCALINGS: dict[str, type[Scaling]] = {"awq": Awq, "smoothquant": SmoothQuant}
ROUNDINGS: dict[str, type[Rounding]] = {"rtn": Clipped, "gptq": Gptq, "gptq-plain": GptqPlain}
ROTATION, TRANSFORM = "rotate", "hadamard"
NAMES = (*ROUNDINGS, *SCALINGS, ROTATION, TRANSFORM)


@dataclass(frozen=True)
class Algorithm:
    """What is done to weights before they are rounded, and how they are rounded."""

    scaling: Scaling | None
    rounding: Rounding
    rotates: bool = False
    transforms: bool = False

    @property
    def sees_text(self) -> bool:
        """Whether codes depend on what reaches the weights."""
        return self.scaling is not None or not isinstance(self.rounding, Clipped)


def parse_algorithm(name: str) -> Algorithm | None:
    """`rtn` (None: nothing to calibrate), `gptq`, `gptq-plain`, `awq`, `smoothquant`, `rotate`, `hadamard`, or several: `rotate+awq+gptq`.

    Raises UsageError naming the nearest valid name.
    """
    parts = name.split("+")
    for part in parts:
        if part not in NAMES:
            raise UsageError(f"algorithm cannot be {name!r}", nearest(part, NAMES))
    scalings, roundings = [p for p in parts if p in SCALINGS], [p for p in parts if p in ROUNDINGS]
    if len(scalings) > 1 or len(roundings) > 1 or len(set(parts)) < len(parts):
        raise UsageError(
            f"algorithm cannot be {name!r}: it names two of a kind",
            "join rotate, hadamard, one of awq and smoothquant, and one of rtn and gptq",
        )
    if parts == ["rtn"]:
        return None
    return Algorithm(
        SCALINGS[scalings[0]]() if scalings else None,
        ROUNDINGS[roundings[0] if roundings else "rtn"](),
        ROTATION in parts,
        TRANSFORM in parts,
    )
