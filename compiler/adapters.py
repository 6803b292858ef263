"""LoRA adapters, merged into the weights that they belong to: W + scale·B·A.

Folders as PEFT writes them (adapter_config.json, adapter_model.safetensors). Source: Hu et al., 2021 (arXiv 2106.09685); scaling as in
PEFT: lora_alpha / r, or lora_alpha / √r where `use_rslora` says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
REFUSED = ("use_dora", "use_qalora", "trainable_token_indices", "target_parameters", "megatron_config", "alora_invocation_tokens")


@dataclass(frozen=True)
class Adapter:
    """One adapter: for each module its A [r, K] and B [N, r], and the factor of their product."""

    path: str
    factors: dict[str, tuple[torch.Tensor, torch.Tensor, float]]
    saved: dict[str, torch.Tensor]
    turned: bool
    sha256: str
    scale: float


def parse_lora(text: str) -> tuple[Path, float]:
    """`DIR` or `DIR=SCALE`; raises UsageError for a scale that is no number."""
    folder, separator, scale = text.rpartition("=")
    if not separator or Path(text).exists():
        return Path(text), 1.0
    try:
        factor = float(scale)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise UsageError(f"--lora {text!r}: {scale!r} is not a scale", "write DIR or DIR=0.5")
    return Path(folder), factor


def open_adapter(text: str) -> Adapter:
    """Read an adapter's folder. Raises CheckpointError for a damaged one, UnsupportedError for a kind that does not merge."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder, scale = parse_lora(text)
    try:
        raw = (folder / CONFIG).read_bytes()
        config: dict[str, Any] = json.loads(raw)
        tensors = load_file(folder / WEIGHTS)
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder} is no LoRA adapter: {error.strerror or error}", f"give a folder with {CONFIG} and {WEIGHTS}"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    if not isinstance(config, dict) or str(config.get("peft_type")).upper() != "LORA":
        raise UnsupportedError(
            f"{folder} is an adapter of the kind {config.get('peft_type') if isinstance(config, dict) else config}, not LoRA"
        )
    for name in REFUSED:
        if config.get(name):
            raise UnsupportedError(f"{folder}: a LoRA adapter with {name} does not merge into weights here")
    if str(config.get("bias", "none")) != "none":
        raise UnsupportedError(f"{folder}: a LoRA adapter that trains biases does not merge into weights here")
    factors, saved = _parts(folder, config, tensors, scale)
    digest = hashlib.sha256(hashlib.sha256(raw).digest() + hashlib.sha256(content).digest()).hexdigest()
    return Adapter(str(folder), factors, saved, bool(config.get("fan_in_fan_out")), digest, scale)


def _parts(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], scale: float
) -> tuple[Any, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    saved: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?", name.removeprefix(PREFIX))
        if match is None:
            saved[re.sub(r"\.modules_to_save(\.default)?", "", name.removeprefix(PREFIX))] = tensor
            continue
        value = tensor.float()
        found.setdefault(match[1], {})[match[3]] = value.T if match[2] else value
    factors = {}
    for module, pair in found.items():
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"{folder}: {module} has only lora_{next(iter(pair))}", "the adapter is incomplete")
        a, b = (pair["A"], pair["B"]) if pair["A"].shape[0] == pair["B"].shape[1] else (pair["B"].T, pair["A"].T)
        rank = a.shape[0]
        if b.shape[1] != rank:
            raise CheckpointError(
                f"{folder}: {module} has a product of [{', '.join(map(str, b.shape))}] and [{', '.join(map(str, a.shape))}]"
            )
        alpha = float(_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank)))
        factors[module] = (a, b, scale * alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return factors, saved


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """A module's own value: PEFT matches its patterns against the ends of names."""
    return next((v for p, v in (patterns or {}).items() if re.match(rf"(.*\.)?({p})$", module)), default)


def merged(params: Callable[[str], torch.Tensor], adapters: Iterable[Adapter], names: set[str]) -> Callable[[str], torch.Tensor]:
    """The parameters with the adapters in them. `names` are all of the model's; raises CheckpointError for a module that it has not."""
    import torch

    changes: dict[str, list[tuple[torch.Tensor, torch.Tensor, float, bool, str]]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        for module, (a, b, factor) in adapter.factors.items():
            changes.setdefault(_find(adapter, f"{module}.weight", names), []).append((a, b, factor, adapter.turned, adapter.path))
        for name, value in adapter.saved.items():
            replaced[_find(adapter, name, names)] = value

    def parameter(name: str) -> torch.Tensor:
        value = replaced[name] if name in replaced else params(name)
        if name not in changes:
            return value
        total = value.float()
        for a, b, factor, turned, path in changes[name]:
            delta = b @ a
            if (
                tuple(delta.shape) != tuple(total.shape)
                and tuple(delta.T.shape) == tuple(total.shape)
                and (turned or delta.shape != delta.T.shape)
            ) or (turned and delta.shape[0] == delta.shape[1]):
                delta = delta.T
            if tuple(delta.shape) != tuple(total.shape):
                raise CheckpointError(
                    f"{path}: {name} is {list(total.shape)}, the adapter's product {list(delta.shape)}",
                    "it was made for another model",
                )
            total = total + factor * delta
        return total.to(value.dtype if value.dtype != torch.float64 else torch.float32)

    return parameter


def _find(adapter: Adapter, name: str, names: set[str]) -> str:
    if name in names:
        return name
    ends = [n for n in names if n.endswith(f".{name}")]
    if len(ends) != 1:
        raise CheckpointError(f"{adapter.path}: the model has no {name}", "the adapter was made for another model")
    return ends[0]
