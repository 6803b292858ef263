"""Methods that loop over tokens or over the experts that were hit: what they compute, without the loop.

torch.export cannot follow a loop whose length depends on the data. Each entry of METHODS knows the classes that it stands for by
what they have, not by their names, and replaces one method while a model is captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _rnn_scan(self: Any, hidden_states: Tensor, recurrent_gate: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """RG-LRU: a state a channel. hidden_states, recurrent_gate [1,T,C] → [1,T,C]."""
    ones = torch.ones((*hidden_states.shape[:2], 1, 1), dtype=torch.float32, device=hidden_states.device)
    decay = torch.log(recurrent_gate.float())
    out = torch.ops.llmc.recurrence(ones, ones, hidden_states.float()[..., None], decay, None, None)
    return out[..., 0].to(hidden_states.dtype), None


def _lightning_attention(self: Any, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Linear attention with one decay a head. hidden_states [1,T,D] → [1,T,D]. Source: Qin et al. 2024 (Lightning Attention)."""
    shape = (*hidden_states.shape[:2], self.num_attention_heads, 3 * self.head_dim)
    query, key, value = self.act_fn(self.qkv_proj(hidden_states)).reshape(shape).split(self.head_dim, dim=3)
    decay = (-self.slope_rate.float().reshape(1, 1, -1)).expand(shape[:3])
    out = torch.ops.llmc.recurrence(query.float(), key.float(), value.float(), decay, None, None)
    out = self.norm(out.to(hidden_states.dtype).reshape(*shape[:2], -1))
    return self.out_proj(F.sigmoid(self.output_gate(hidden_states)) * out), None


def _gated_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Experts whose matrices lie below one another: `mlp.w1` and `mlp.v1` in, `mlp.w2` out, [E·I, D] each."""
    shape = (self.num_experts, self.ffn_hidden_size, self.hidden_size)
    w1, v1, w2 = (w.view(shape) for w in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    gate = opaque_gate(lambda h: self.mlp.activation_fn(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1])
    rows = hidden_states.reshape(-1, self.hidden_size)
    out = torch.ops.llmc.experts(
        rows, top_k_index, top_k_weights, torch.cat([w1, v1], 1), None, w2.transpose(1, 2), None, gate, False
    )
    return out.view(hidden_states.shape)


def _experts_and_identities(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Experts of which the last ones give back what they get. hidden_states [T,D]; top_k_index, top_k_weights [T,K]."""
    real = top_k_index < self.num_routed_experts
    weights = top_k_weights.to(hidden_states.dtype)
    none = torch.zeros_like(weights)
    gate = opaque_gate(lambda h: self.act_fn(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1])
    out = torch.ops.llmc.experts(
        hidden_states,
        torch.where(real, top_k_index, torch.zeros_like(top_k_index)),
        torch.where(real, weights, none),
        self.gate_up_proj[: self.num_routed_experts],
        None,
        self.down_proj,
        None,
        gate,
        False,
    )
    return out + hidden_states * torch.where(real, none, weights).sum(-1, keepdim=True)


_gates: dict[str, Callable[[Tensor], Tensor]] = {}


def opaque_gate(fn: Callable[[Tensor], Tensor]) -> str:
    """The name under which the importer finds a gate function of experts: [.., 2I] → [.., I], the gate's half first."""
    name = f"loop{len(_gates)}:halves"
    _gates[name] = fn
    return name


METHODS: list[tuple[str, Callable[[Any], bool], Callable[..., Any]]] = [
    ("_rnn_scan", lambda m: hasattr(m, "_rnn_scan"), _rnn_scan),
    ("forward", lambda m: hasattr(m, "slope_rate") and hasattr(m, "decay_factors"), _lightning_attention),
    ("forward", lambda m: all(hasattr(getattr(m, "mlp", None), w) for w in ("w1", "v1", "w2", "activation_fn")) and hasattr(m, "num_experts"), _gated_experts),
    ("forward", lambda m: hasattr(m, "zero_expert_num") and hasattr(m, "gate_up_proj"), _experts_and_identities),
]  # fmt: skip
"""The method's name, the modules that it is replaced in, and what replaces it."""


@contextlib.contextmanager
def without_loops(model: torch.nn.Module) -> Iterator[dict[str, Callable[[Tensor], Tensor]]]:
    """Replace methods of a model's classes; gives the gate functions that they name."""
    _gates.clear()
    replaced: dict[tuple[type, str], Any] = {}
    for module in model.modules():
        kind = type(module)
        for name, matches, fn in METHODS:
            if (kind, name) not in replaced and name in vars(kind) and matches(module):
                replaced[kind, name] = vars(kind)[name]
                setattr(kind, name, fn)
    try:
        yield _gates
    finally:
        for (kind, name), fn in replaced.items():
            setattr(kind, name, fn)
