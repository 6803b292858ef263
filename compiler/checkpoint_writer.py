"""Writing a checkpoint's folder: tensors under the names that transformers' checkpoints have, the configuration, the tokenizer."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .checkpoint import Checkpoint


def save_checkpoint(
    out: Path,
    like: Checkpoint,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    quantization: dict[str, Any] | None = None,
) -> int:
    """Write `tensors` to the folder `out` with the configuration and tokenizer of `like`; returns how many there are.

    `dtype` is what config.json says the model computes in, `quantization` its `quantization_config`; that of `like` is left out.
    """
    from safetensors.torch import save_file
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    out.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    config = copy.deepcopy(like.config)
    config.dtype = dtype
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if not config.architectures and known is not None:  # a GGUF names none; other tools choose their class by it
        config.architectures = [known]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(out)
    if quantization is not None:
        where = out / "config.json"
        where.write_text(json.dumps(json.loads(where.read_text()) | {"quantization_config": quantization}, indent=2) + "\n")
    for name, data in like.tokenizer_files.items():
        (out / name).write_bytes(data)
    return len(tensors)
