"""Capture: a transformers model's own forward, exported on the meta device with opaque attention and experts.

Three registries of transformers make it clean: `AttentionInterface` and `AttentionMaskInterface` (attention becomes one op a
layer, and the mask a description, never a tensor), and the experts registry. Nothing here names a model.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import CheckpointError, UnsupportedError
from .ir.reference import TORCH_DTYPE
from .loops import without_loops
from .mixers import opaque_mixers

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from transformers import PretrainedConfig, PreTrainedModel

IMPLEMENTATION = "llmc"


@dataclass(frozen=True)
class Mask:
    """What the mask function says: which keys a query may see, beside those of its own sequence.

    A model may take a part of it, or apply it to scores [1,T,T] that it has computed itself, to find the best of them.
    """

    causal: bool = False
    window: int | None = None
    chunk: int | None = None
    unknown: str = ""
    never: bool = False
    inverted: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bool

    def __getitem__(self, index: Any) -> Mask:
        parts = index if isinstance(index, tuple) else (index,)
        if not all(part == slice(None) or (part == 0 and at < 2) for at, part in enumerate(parts)):
            raise UnsupportedError(f"a part {index} is taken from the attention's mask, which is not supported")
        return self

    def __invert__(self) -> Mask:
        return replace(self, inverted=not self.inverted)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        name = getattr(func, "__name__", str(func))
        if name == "masked_fill" and len(given) == 3:
            scores, mask, value = given
            if isinstance(mask, Mask) and mask.inverted and isinstance(value, int | float) and value <= -1e4:
                return VisibleScores(scores, ~mask)
        raise UnsupportedError(f"{name} of the attention's mask is not supported")


class VisibleScores:
    """Scores [1,T,T] of the tokens that a query may see: a model may only ask which are the best.

    It sees as many of them as it could ask for: a step holds a part of a sequence, and the rest lies in the cache.
    """

    def __init__(self, scores: torch.Tensor, mask: Mask) -> None:
        if not mask.causal or mask.window or mask.chunk or mask.unknown:
            raise UnsupportedError(f"the best keys are chosen under a mask that is not plainly causal: {mask}")
        self.scores = scores
        self.shape = (*scores.shape[:-1], sys.maxsize)

    def topk(self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> _Best:
        if dim not in (-1, self.scores.ndim - 1) or not largest or self.scores.ndim != 3:
            raise UnsupportedError(f"the best {k} keys are chosen along dimension {dim} of scores {tuple(self.scores.shape)}")
        return _Best(torch.ops.llmc.best_keys(self.scores, k))


class _Best(NamedTuple):
    """What `topk` gives, without the values: positions [1,T,k] int32, -1 where there are fewer."""

    indices: torch.Tensor


@dataclass
class Captured:
    """An exported model: the program, the model on the meta device, and the values of its non-persistent buffers by name.

    `context`: how many positions a sequence has at most.
    """

    program: ExportedProgram
    model: PreTrainedModel
    buffers: dict[str, torch.Tensor]
    context: int
    gates: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# --- the opaque operations: they exist to be recorded, and give the shapes; the IR's ops define their values ------------


@torch.library.custom_op("llmc::attention", mutates_args=())
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    scale: float,
    window: int | None,
    chunk: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    causal: bool,
    selected: torch.Tensor | None,
) -> torch.Tensor:
    raise NotImplementedError("llmc::attention is only traced")


@_attention.register_fake
def _(query, key, value, layer, scale, window, chunk, softcap, sinks, causal, selected):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return query.new_empty((query.shape[0], query.shape[2], query.shape[1], value.shape[3]))


@torch.library.custom_op("llmc::experts", mutates_args=())
def _experts(
    hidden: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    w_in: torch.Tensor,
    b_in: torch.Tensor | None,
    w_out: torch.Tensor,
    b_out: torch.Tensor | None,
    gate: str,
    transposed: bool,
) -> torch.Tensor:
    raise NotImplementedError("llmc::experts is only traced")


@_experts.register_fake
def _(hidden, index, weight, w_in, b_in, w_out, b_out, gate, transposed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return torch.empty_like(hidden)


@torch.library.custom_op("llmc::best_keys", mutates_args=())
def _best_keys(scores: torch.Tensor, k: int) -> torch.Tensor:
    raise NotImplementedError("llmc::best_keys is only traced")


@_best_keys.register_fake
def _(scores, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return scores.new_empty((*scores.shape[:-1], k), dtype=torch.int32)


# --- what the registries call -------------------------------------------------------------------------------------------


def _closure(fn: Any) -> dict[str, Any]:
    return dict(zip(fn.__code__.co_freevars, (c.cell_contents for c in fn.__closure__ or ()), strict=True))


def _no_blocks(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
    """The overlay of media tokens where there are none."""
    return q_idx != q_idx


def describe_mask(fn: Any) -> Mask:
    """Read causal, window and chunk from the closures that transformers' mask functions are composed of."""
    name = getattr(fn, "__qualname__", str(fn))
    if name == "causal_mask_function":
        return Mask(causal=True)
    if name == "bidirectional_mask_function" or name.startswith("packed_sequence_mask_function"):
        return Mask()
    cells = _closure(fn) if hasattr(fn, "__code__") else {}
    if name.startswith("remap_positions_for_packed_sequence"):
        return describe_mask(cells["mask_function"])
    if name.startswith("sliding_window_overlay"):
        return Mask(window=int(cells["sliding_window"]))
    if name.startswith("chunked_overlay"):
        return Mask(chunk=int(cells["chunk_size"]))
    if name == "_no_blocks":
        return Mask(never=True)
    if name.startswith("or_masks"):
        parts = [m for m in map(describe_mask, cells["mask_functions"]) if not m.never]
        return parts[0] if len(parts) == 1 else Mask(unknown=name)
    if name.startswith("and_masks"):
        parts = [describe_mask(f) for f in cells["mask_functions"]]
        return Mask(
            any(p.causal for p in parts),
            next((p.window for p in parts if p.window), None),
            next((p.chunk for p in parts if p.chunk), None),
            "; ".join(p.unknown for p in parts if p.unknown),
        )
    return Mask(unknown=name)


def _mask(*args: Any, mask_function: Any = None, **kwargs: Any) -> Mask:
    return describe_mask(mask_function)


_IGNORED = {"output_attentions", "use_cache", "position_ids", "position_embeddings", "output_hidden_states", "return_dict", "layer_idx", "cache_position", "output_router_logits", "labels", "dropout"}  # fmt: skip


def _attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None, s_aux: torch.Tensor | None = None, is_causal: bool | None = None, indices: torch.Tensor | None = None, **kwargs: Any) -> tuple[torch.Tensor, None]:  # fmt: skip
    name = type(module).__name__
    mask = Mask(bool(is_causal if is_causal is not None else getattr(module, "is_causal", True)), sliding_window)
    if isinstance(attention_mask, Mask):
        mask = attention_mask
    elif attention_mask is not None:
        raise UnsupportedError(f"{name} adds a computed mask to its attention", "this attention is not supported yet")
    if mask.unknown:
        raise UnsupportedError(f"{name} uses a mask that is not known: {mask.unknown}")
    surplus = sorted(k for k, v in kwargs.items() if v is not None and k not in _IGNORED)
    if surplus:
        raise UnsupportedError(f"{name} passes {', '.join(surplus)} to its attention, which is not supported")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer = getattr(module, "layer_idx", None)
    out = torch.ops.llmc.attention(
        query,
        key,
        value,
        -1 if layer is None else int(layer),
        scale,
        mask.window,
        mask.chunk,
        softcap,
        s_aux,
        mask.causal,
        indices,
    )
    return out, None


class _Recorder:
    """The gate functions of the experts modules met during one capture, by name."""

    def __init__(self) -> None:
        self.gates: dict[str, Any] = {}


_recorder = _Recorder()


def _route(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    name = type(self).__name__
    if getattr(self, "has_post_expert_norm", False):
        raise UnsupportedError(f"{name} normalises each expert's output, which is not supported")
    if self.has_gate and not self.is_concatenated:
        layout = "interleaved"
    else:
        layout = "halves" if self.has_gate else ""
    _recorder.gates[f"{name}:{layout}"] = self._apply_gate if self.has_gate else self.act_fn
    w_in = self.gate_up_proj if self.has_gate else self.up_proj
    b_in = (self.gate_up_proj_bias if self.has_gate else self.up_proj_bias) if self.has_bias else None
    b_out = self.down_proj_bias if self.has_bias else None
    return torch.ops.llmc.experts(
        hidden_states, top_k_index, top_k_weights, w_in, b_in, self.down_proj, b_out, f"{name}:{layout}", bool(self.is_transposed)
    )


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _route)


# --- the model ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Construct modules with parameters on the meta device and buffers as they are: their values are wanted."""
    original = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = torch.nn.Parameter(param.detach().to("meta"), requires_grad=False)
        original(module, name, param)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]


def build_model(
    config: PretrainedConfig, dtype: str, *, attention: str = IMPLEMENTATION, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of a config, parameters on the meta device, experts opaque, and so attention unless it is "eager"."""
    from transformers import AutoModelForCausalLM

    _register()
    with _parameters_on_meta(), torch.no_grad():
        try:
            options = {"attn_implementation": attention, "experts_implementation": IMPLEMENTATION, "dtype": TORCH_DTYPE[dtype]}
            named = _named_class(config)
            if named is not None:
                model = named._from_config(config, **options)
            else:
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options)
        except KeyError as error:
            if error.args != (IMPLEMENTATION,):
                raise CheckpointError(f"the configuration names what transformers does not know: {error}") from error
            raise UnsupportedError(
                f"this model's attention does not go through transformers' attention interface ({error})",
                "it is not supported yet",
            ) from error
        except ValueError as error:
            raise UnsupportedError(f"transformers cannot build this model: {str(error).splitlines()[0]}") from error
    return model.eval()


def _named_class(config: PretrainedConfig) -> Any:
    """The class that the checkpoint names, where AutoModelForCausalLM knows no class for its configuration."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "auto_map", None):
        return None
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    for name in getattr(config, "architectures", None) or []:
        found = getattr(transformers, name, None) if name in names else None
        if found is not None and isinstance(config, found.config_class):
            return found
    return None


def freeze_dynamic_rope(model: PreTrainedModel, context: int) -> list[str]:
    """Fix rope types that look at the longest position of a batch at `context` positions; returns what was fixed.

    A serving engine cannot let one request's length change another's rotation, so the branch is chosen at compile time.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fixed = []
    for name, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if not isinstance(kind, str) or not ("dynamic" in kind or kind == "longrope"):
                continue
            prefix = "" if layer_type is None else f"{layer_type}_"
            extra = {} if layer_type is None else {"layer_type": layer_type}
            frequencies, scale = ROPE_INIT_FUNCTIONS[kind](module.config, None, seq_len=context, **extra)
            getattr(module, f"{prefix}inv_freq").copy_(frequencies)
            setattr(module, f"{prefix}attention_scaling", scale)
            module.rope_type = "default" if layer_type is None else {**module.rope_type, layer_type: "default"}
            fixed.append(f"{name}: {kind} rope is fixed at a context of {context}")
    return fixed


class _Step(torch.nn.Module):
    """One step of packed tokens: input_ids [1,T], position_ids [1,T], logits_rows [R] → logits [1,R,V]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.m = model
        own = inspect.signature(model.forward).parameters
        base = getattr(model, model.base_model_prefix, model)
        inner = inspect.signature(base.forward).parameters
        passes_on = any(p.kind == p.VAR_KEYWORD for p in own.values())
        self.takes_positions = "position_ids" in own or ("position_ids" in inner and passes_on)
        self.takes_rows = "logits_to_keep" in own
        self.first_position = _first_position(model) if self.takes_positions else 0

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, logits_rows: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {"use_cache": False}
        if self.takes_positions:
            options["position_ids"] = position_ids + self.first_position if self.first_position else position_ids
        if self.takes_rows:
            options["logits_to_keep"] = logits_rows
        logits = self.m(input_ids=input_ids, **options).logits
        return logits if self.takes_rows else logits[:, logits_rows]


def _first_position(model: PreTrainedModel) -> int:
    """The position that a model gives its first token when nobody gives any: 0, or, where padding has one of its own, the next."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if hasattr(module, "create_position_ids_from_input_ids") and isinstance(padding, int):
            return padding + 1
    return 0


def capture(config: PretrainedConfig, dtype: str, context: int, *, trust_remote_code: bool = False) -> Captured:
    """Export the model of a config in the deployment dtype. Raises UnsupportedError with the reason when it cannot be.

    A model that does not use transformers' attention interface is captured with its attention written out: a pass recognises it.
    """
    try:
        return _capture(config, dtype, context, IMPLEMENTATION, trust_remote_code)
    except UnsupportedError as error:
        try:
            return _capture(copy.deepcopy(config), dtype, context, "eager", trust_remote_code)
        except UnsupportedError as second:
            raise (second if second.hint else error) from error  # the one that says what to do
        except AssertionError as second:
            raise error from second


def _capture(config: PretrainedConfig, dtype: str, context: int, attention: str, trust_remote_code: bool) -> Captured:
    config._attn_implementation = attention
    model = build_model(config, dtype, attention=attention, trust_remote_code=trust_remote_code)
    notes = freeze_dynamic_rope(model, context)
    persistent = set(model.state_dict())
    buffers = {n: b.detach().clone() for n, b in model.named_buffers() if n not in persistent}
    model.to("meta")
    step = _Step(model)
    ids = torch.zeros(1, 12, dtype=torch.int64, device="meta")
    rows = torch.zeros(5, dtype=torch.int64, device="meta")
    _recorder.gates = {}
    with opaque_mixers(model), without_loops(model) as gates:
        program = _export(step, (ids, ids.clone(), rows), context)
    if not step.takes_positions:
        notes.append("the model computes its own positions")
    return Captured(program, model, buffers, context, {**_recorder.gates, **gates}, notes)


@contextlib.contextmanager
def _scalars_kept() -> Iterator[None]:
    """Trace torch.tensor(number) as a fill, and x[..., [i]] as slices: as constants of the meta device they would lose their
    values. And do not look for packed
    sequences in the positions: the tokens of a step belong to sequences that the runtime knows."""
    from transformers import masking_utils

    original, packed = torch.tensor, masking_utils.find_packed_sequence_indices

    def tensor(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        lost = torch.device(kwargs.get("device") or "cpu").type == "meta"
        if lost and isinstance(data, bool | int | float) and not args:
            dtype = kwargs.get("dtype") or (
                torch.bool if isinstance(data, bool) else torch.int64 if isinstance(data, int) else torch.get_default_dtype()
            )
            return torch.full((), data, dtype=dtype, device=kwargs.get("device"))
        return original(data, *args, **kwargs)

    take = torch.Tensor.__getitem__

    def getitem(self: torch.Tensor, index: Any) -> torch.Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        lists = [i for i in parts if isinstance(i, list) and i and all(type(n) is int for n in i)]
        if len(lists) != 1 or any(isinstance(i, torch.Tensor | bool) or i is None for i in parts):
            return take(self, index)
        after = len(parts) - 1 - [isinstance(i, list) for i in parts].index(True)
        whole = sum(isinstance(i, int) for i in parts)
        if whole:
            return take(self, index)
        pieces = [
            take(self, tuple(slice(n, n + 1 if n != -1 else None) if i is lists[0] else i for i in parts)) for n in lists[0]
        ]
        if Ellipsis not in parts[: len(parts) - 1 - after]:
            return torch.cat(pieces, len(parts) - 1 - after)
        return torch.cat(pieces, -1 - after)

    fill = torch.full

    def full(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = fill(*args, **kwargs)
        value = kwargs.get("fill_value", args[1] if len(args) > 1 else None)
        if isinstance(value, bool | int | float):
            made.llmc_fill = value  # type: ignore[attr-defined]
        return made

    blockwise = masking_utils.blockwise_overlay

    def overlay(block_sequence_ids: torch.Tensor) -> Any:
        return _no_blocks if getattr(block_sequence_ids, "llmc_fill", None) == -1 else blockwise(block_sequence_ids)

    torch.full, masking_utils.blockwise_overlay = full, overlay  # type: ignore[assignment]
    torch.tensor, masking_utils.find_packed_sequence_indices = tensor, lambda position_ids: None
    torch.Tensor.__getitem__ = getitem  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.tensor, masking_utils.find_packed_sequence_indices = original, packed
        torch.full, masking_utils.blockwise_overlay = fill, blockwise  # type: ignore[assignment]
        torch.Tensor.__getitem__ = take  # type: ignore[method-assign]


def _export(step: _Step, args: tuple[torch.Tensor, ...], context: int) -> ExportedProgram:
    """Named T first: a guard that does not hold for every T is refused; then automatic dimensions with deferred checks."""
    tokens, rows = torch.export.Dim("T", min=2), torch.export.Dim("R", min=2)
    with torch.no_grad(), _scalars_kept():
        try:
            return torch.export.export(step, args, dynamic_shapes=({1: tokens}, {1: tokens}, {0: rows}), strict=False)
        except UnsupportedError:
            raise
        except Exception as error:
            if "Constraints violated" not in str(error):
                raise UnsupportedError(
                    f"torch.export cannot capture this model: {_first_line(error)}", "--debug shows where"
                ) from error
        auto = torch.export.Dim.AUTO
        try:
            program = torch.export.export(
                step,
                args,
                dynamic_shapes=({1: auto}, {1: auto}, {0: auto}),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except Exception as error:
            raise UnsupportedError(
                f"torch.export cannot capture this model: {_first_line(error)}", "--debug shows where"
            ) from error
    ids = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "input_ids")
    if isinstance(ids.meta["val"].shape[1], int):
        raise UnsupportedError("the model's forward depends on the number of tokens, so it cannot be compiled for all of them")
    most = program.range_constraints.get(ids.meta["val"].shape[1].node.expr)
    if most is not None and most.upper < context:
        raise UnsupportedError(
            f"the model's forward goes another way for more than {most.upper} tokens", f"give --context {most.upper} or less"
        )
    return program


def _first_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:300]}"
