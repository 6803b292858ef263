"""Recurrent mixers: the functions that transformers takes from kernel packages, as one opaque operation.

transformers marks them with the kernel's name (`mamba_chunk_scan_combined`, `chunk_gated_delta_rule`, …) whatever the family
that calls them. While a model is captured they are replaced by the functions below, which compute what is token by token in
torch and leave the recurrence to `llmc::recurrence`. Short convolutions need nothing here: the importer knows them.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("llmc::recurrence", mutates_args=())  # type: ignore[untyped-decorator]
def _recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor, rates: Tensor | None, beta: Tensor | None) -> Tensor:
    raise NotImplementedError("llmc::recurrence is only traced")


@_recurrence.register_fake
def _(q, k, v, g, rates, beta):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def _selective_scan(
    hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False, **_: Any,
) -> Tensor | tuple[Tensor, None]:  # fmt: skip
    """Mamba 1. hidden_states, dt [1,D,T]; A [D,N]; B, C [1,N,T] → [1,D,T]: a head a channel, keys and queries shared by all."""
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = F.softplus(dt)
    rate, value = dt.float().transpose(1, 2), (dt.float() * hidden_states.float()).transpose(1, 2)
    keys, queries = (t.float().transpose(1, 2)[:, :, None] for t in (B, C))
    out = torch.ops.llmc.recurrence(queries, keys, value[..., None], rate, A.float().T, None)[..., 0].transpose(1, 2)
    if D is not None:
        out = out + hidden_states * D[None, :, None]
    if z is not None:
        out = out * F.silu(z)
    return (out, None) if return_last_state else out


def _chunk_scan(
    hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None = None,
    dt_bias: Tensor | None = None, dt_softplus: bool = False, dt_limit: tuple[float, float] = (0.0, float("inf")),
    z: Tensor | None = None, return_final_states: bool = False, **_: Any,
) -> Tensor | tuple[Tensor, None]:  # fmt: skip
    """Mamba 2. hidden_states [1,T,H,P]; dt [1,T,H]; A [H]; B, C [1,T,G,N] → [1,T,H,P]."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    dt = torch.clamp(dt, min=dt_limit[0], max=dt_limit[1]).float()
    x = hidden_states.float()
    out = torch.ops.llmc.recurrence(C.float(), B.float(), x * dt[..., None], A.float() * dt, None, None)
    if D is not None:
        out = out + (D[..., None] if D.ndim == 1 else D) * x
    if z is not None:
        out = out * F.silu(z.float())
    return (out, None) if return_final_states else out


def _delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, use_qk_l2norm_in_kernel: bool = False,
    scale: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Gated delta nets and KDA. query, key [1,T,G,N]; value [1,T,H,P]; g [1,T,H] or [1,T,H,N]; beta [1,T,H] → [1,T,H,P]."""
    kind = query.dtype
    query, key, value, g, beta = (t.float() for t in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        query, key = (t * torch.rsqrt((t * t).sum(-1, keepdim=True) + 1e-6) for t in (query, key))
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    return torch.ops.llmc.recurrence(query, key, value, g, None, beta).to(kind), None


KERNELS: dict[str, Callable[..., Any]] = {
    "selective_scan_fn": _selective_scan,
    "mamba_chunk_scan_combined": _chunk_scan,
    "chunk_gated_delta_rule": _delta_rule,
    "chunk_kda": _delta_rule,
}
"""By the names that kernel packages (mamba-ssm, fla) give them."""


def kernel_name(fn: Any) -> str:
    """The kernel that a function of transformers stands for, or ""."""
    while fn is not None:
        cells = inspect.getclosurevars(fn).nonlocals if inspect.isfunction(fn) and fn.__closure__ else {}
        if cells.get("func_name") in KERNELS:
            return str(cells["func_name"])
        fn = getattr(fn, "__wrapped__", None)
    return ""


@contextlib.contextmanager
def opaque_mixers(model: torch.nn.Module) -> Iterator[None]:
    """Replace the recurrent mixers in the namespaces of a model's modules."""
    kinds = {type(m) for m in model.modules()}
    replaced: list[tuple[Any, str, Any]] = []
    for space in {sys.modules[k.__module__] for k in kinds if k.__module__.startswith("transformers.models")}:
        for name, fn in list(vars(space).items()):
            kernel = kernel_name(fn) if callable(fn) and not isinstance(fn, type) else ""
            if kernel:
                replaced.append((space, name, fn))
                setattr(space, name, KERNELS[kernel])
    try:
        yield
    finally:
        for owner, name, fn in replaced:
            setattr(owner, name, fn)
