"""The algorithms by name. A new one costs its file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UnsupportedError, UsageError, nearest
from .gptq import Gptq

if TYPE_CHECKING:
    from ..calibrate import Algorithm

CALIBRATED = {"gptq": Gptq}
NAMES = ("rtn", *CALIBRATED)
LATER = ("awq", "smoothquant")


def check_algorithm(name: str) -> None:
    """Raise UsageError for an unknown name, UnsupportedError for one that is known and not built."""
    if name in LATER:
        raise UnsupportedError(f"the algorithm {name} is not supported yet", f"use one of {', '.join(NAMES)}")
    if name not in NAMES:
        raise UsageError(f"algorithm cannot be {name!r}", nearest(name, NAMES))


def calibrated_algorithm(name: str) -> Algorithm | None:
    """The algorithm of that name if it needs calibration text; None for round to nearest."""
    made = CALIBRATED.get(name)
    return made() if made is not None else None
