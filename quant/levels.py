"""What the codes of the 4-bit floating schemes stand for."""

from __future__ import annotations

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# Quantiles of a normal distribution (QLoRA, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# GGUF's IQ4_NL and IQ4_XS.
IQ4 = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
FOUR_BITS = {"e2m1": E2M1, "nf4": NF4, "iq4": IQ4}


def levels_of(kind: str) -> torch.Tensor:
    """float32 values of the codes of a floating scheme, [16] or [256]."""
    if kind in ("mxfp4", "nvfp4"):
        return torch.tensor(E2M1)
    if kind in FOUR_BITS:
        return torch.tensor(FOUR_BITS[kind])
    dtype = torch.float8_e5m2 if kind == "fp8_e5m2" else torch.float8_e4m3fn
    return torch.arange(256).to(torch.uint8).view(dtype).float().nan_to_num(0.0, posinf=0.0, neginf=0.0)
