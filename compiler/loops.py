"""Methods that loop over tokens or over the experts that were hit: what they compute, without the loop.

torch.export cannot follow a loop whose length depends on the data. Each entry of METHODS knows the classes that it stands for by
what they have, not by their names, and replaces one method while a model is captured.
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


def _language_adapters(self: Any, lang_ids: Tensor, hidden_states: Tensor) -> Tensor:
    """An adapter for each language: every token goes through all of them, and keeps its own's."""
    residual = hidden_states
    if self.adapter_layer_norm is not None:
        hidden_states = self.adapter_layer_norm(hidden_states)
    elif self.adapter_reuse_layer_norm:
        hidden_states = self.LayerNorm(hidden_states)
    if self.ln_before_adapter:
        residual = hidden_states
    out = torch.zeros_like(hidden_states)
    for i, adapter in enumerate(self.adapter_modules.values()):
        mine = (lang_ids == i).reshape(*lang_ids.shape, *(1,) * (hidden_states.ndim - lang_ids.ndim))
        out = torch.where(mine, adapter(hidden_states), out)
    return out + residual


def _choices(router: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    logits, index = router.layer(rows).float().topk(router.top_k, dim=1)
    return torch.softmax(logits, dim=1).type_as(rows), index


def _chosen(rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """x·W_eᵀ for the chosen experts: rows [T,K] or [T,J,K], weight [E,N,K], index [T,J] → [T,J,N]: all are computed."""
    count, width, _ = weight.shape
    every = F.linear(rows, weight.reshape(count * width, -1))
    place = index[..., None] * width + torch.arange(width, device=index.device)
    if rows.ndim == 2:
        return every.gather(1, place.reshape(index.shape[0], -1)).reshape(*index.shape, width)
    return every.gather(2, place)


def _sorted_experts(self: Any, layer_input: Tensor) -> Tensor:
    """Gated experts whose tokens are sorted by expert."""
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    weights, index = _choices(self.router, rows)
    gate = opaque_gate(lambda h: self.activation(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1])
    out = torch.ops.llmc.experts(
        rows, index, weights, self.input_linear.weight, None, self.output_linear.weight, None, gate, False
    )
    return out.view(layer_input.shape) + self.bias


def _sorted_map(self: Any, layer_input: Tensor) -> Any:
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    weights, index = _choices(self.router, rows)
    out = _chosen(rows, self.input_linear.weight, index)
    return out.view(*layer_input.shape[:2], self.top_k, -1), None, (weights, index)


def _sorted_reduce(self: Any, layer_input: Tensor, topo_info: Any) -> Tensor:
    weights, index = topo_info
    rows = layer_input.reshape(-1, *layer_input.shape[-2:])
    out = (_chosen(rows, self.output_linear.weight, index) * weights[..., None]).sum(1)
    return out.view(*layer_input.shape[:2], -1) + self.bias


def _mlstm(
    self: Any, query: Tensor, key: Tensor, value: Tensor, igate: Tensor, fgate: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """xLSTM's matrix memory. query, key [1,H,T,D], value [1,H,T,P], gates [1,H,T] → [1,H,T,P]. The gates are capped, so no maximum needs
    to be carried along. Source: Beck et al. 2024."""
    kind = query.dtype
    q, k, v = (t.float().transpose(1, 2) for t in (query, key, value))
    strength, decay = igate.float().transpose(1, 2).exp(), F.logsigmoid(fgate.float().transpose(1, 2))
    ones = torch.ones_like(v[..., :1])
    out = torch.ops.llmc.recurrence(q * q.shape[-1] ** -0.5, k * strength[..., None], torch.cat([v, ones], -1), decay, None, None)
    unit = torch.ones((*v.shape[:2], 1, 1), dtype=torch.float32, device=v.device)
    total = torch.ops.llmc.recurrence(unit, unit, strength[..., None], decay, None, None)
    length = torch.maximum(out[..., -1:].abs(), ones)
    return (out[..., :-1] / (length + self.config.eps * total)).transpose(1, 2).to(kind), None


def _wkv(time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """RWKV 4: means of values, weighted by keys and by how long ago they were. key, value [1,T,C] → [1,T,C]."""
    now = key.float().exp()
    pairs = torch.cat([now * value.float(), now], -1)
    ones = torch.ones((*key.shape[:2], 1, 1), dtype=torch.float32, device=key.device)
    decay = (-time_decay.float().exp()).repeat(2).expand(pairs.shape)
    past = F.pad(torch.ops.llmc.recurrence(ones, ones, pairs[..., None], decay, None, None)[..., 0], (0, 0, 1, -1))
    both = past + time_first.float().exp().repeat(2) * pairs
    width = key.shape[-1]
    return (both[..., :width] / both[..., width:]).to(value.dtype), None


FUNCTIONS: list[tuple[tuple[str, ...], Callable[..., Any]]] = [(("time_decay", "time_first", "key", "value"), _wkv)]
"""The first parameters of a function in a model's file, and what replaces it."""

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
    ("forward", lambda m: hasattr(m, "chunkwise_kernel_fn") and hasattr(m, "step_kernel_fn"), _mlstm),
    ("lang_adapter", lambda m: hasattr(m, "adapter_modules"), _language_adapters),
    ("forward", lambda m: all(hasattr(m, n) for n in ("router", "input_linear", "output_linear", "activation")), _sorted_experts),
    ("map", lambda m: all(hasattr(m, n) for n in ("router", "input_linear", "output_linear", "reduce")), _sorted_map),
    ("reduce", lambda m: all(hasattr(m, n) for n in ("router", "input_linear", "output_linear", "map")), _sorted_reduce),
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
    moved: list[tuple[Any, str, Any]] = []
    for space in {
        sys.modules[type(m).__module__] for m in model.modules() if type(m).__module__.startswith("transformers.models")
    }:
        for name, found in list(vars(space).items()):
            if inspect.isfunction(found) and found.__module__ == space.__name__:
                first = tuple(inspect.signature(found).parameters)
                for wanted, fn in FUNCTIONS:
                    if first[: len(wanted)] == wanted:
                        moved.append((space, name, found))
                        setattr(space, name, fn)
    try:
        yield _gates
    finally:
        for space, name, found in moved:
            setattr(space, name, found)
        for (kind, name), fn in replaced.items():
            setattr(kind, name, fn)
