"""Which passes, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .compress_latent import CompressLatent
from .fuse_activation import FuseActivation
from .fuse_attention import FuseAttention
from .fuse_hadamard import FuseHadamard
from .fuse_norm import FuseNorm
from .fuse_residual import FuseResidual
from .gather_last import GatherLast
from .merge_linears import MergeLinears
from .pass_ import Pass
from .quantize import Quantize
from .raise_activation import RaiseActivation
from .raise_attention import RaiseAttention
from .raise_indexer import RaiseIndexer
from .raise_norm import RaiseNorm
from .raise_positions import RaisePositions
from .raise_rope import RaiseRope
from .simplify import Simplify
from .widen import Widen

if TYPE_CHECKING:
    import torch


def raising_passes(buffers: Mapping[str, torch.Tensor]) -> list[Pass]:
    """What the model wrote out, as ops that say what they are."""
    return [
        Widen(),
        Simplify(),
        RaiseAttention(buffers),
        RaiseIndexer(buffers),
        RaisePositions(),
        RaiseNorm(buffers),
        RaiseActivation(buffers),
        RaiseRope(buffers),
        Simplify(),
    ]


def cpu_passes(buffers: Mapping[str, torch.Tensor], quantize: Quantize | None = None, *, latent: bool = True) -> list[Pass]:
    """Raise what the model wrote out, attach schemes, then fuse: a fusion joins only weights of the same scheme. `latent`: caches
    may keep what keys and values are made of, for which GPUs have no kernel."""
    return [
        *raising_passes(buffers),
        quantize or Quantize(),
        *([CompressLatent()] if latent else []),
        FuseActivation(),
        MergeLinears(),
        FuseHadamard(),
        FuseResidual(),
        FuseAttention(),
        GatherLast(),
        FuseNorm(),
        Simplify(),
    ]
