"""Exporting: weights under transformers' names, as the artifact would compute with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import UsageError
from .pipeline import Progress, front_end, resolve, schemes


def export_dense(source: str, out: Path, *, quiet: bool = True, **options: Any) -> int:
    """Write `out`/model.safetensors in float32, config.json and the tokenizer; returns the number of tensors.

    Raises UsageError when `out` holds something already.
    """
    import torch
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    from .passes.quantize import Quantize, root_param, weight_nodes
    from .quant.algorithms.rtn import quantize
    from .quant.formats.registry import open_checkpoint

    settings = resolve(options)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", "give a new folder")
    progress = Progress(quiet)
    with progress.stage("capture", f"Reading {source}"):
        checkpoint = open_checkpoint(source, trust_remote_code=settings.trust_remote_code)
        dtype = checkpoint.dtype if settings.dtype == "auto" else settings.dtype
        captured, imported = front_end(checkpoint, dtype, 1, settings.trust_remote_code)
        bound = checkpoint.bind(captured.model)
    default, rules = schemes(settings)
    plan = Quantize(default, rules).plan(imported.graph)
    chosen = {
        root_param(weight, imported.graph)[1:]: plan[node.output.name]
        for node, weight in weight_nodes(imported.graph)
        if node.output.name in plan
    }
    tensors: dict[str, torch.Tensor] = {}
    for param in progress.each([p for p in imported.graph.params if p.name[1:] not in imported.buffers], "tensors"):
        name = param.name[1:]
        value, scheme = bound(name), chosen.get(name)
        if scheme is not None and scheme.is_coded and value.ndim in (2, 3):
            matrices = value.reshape(-1, *value.shape[-2:])
            value = torch.stack([quantize(m, scheme).dequantize(scheme) for m in matrices]).reshape(value.shape)
        elif scheme is not None and not scheme.is_coded:
            value = value.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[scheme.kind])
        tensors[name] = value.float().contiguous()
    tensors = {
        n: t.contiguous() for n, t in revert_weight_conversion(captured.model, tensors).items()
    }  # as checkpoints name them
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    checkpoint.config.dtype = torch.float32
    checkpoint.config.save_pretrained(out)
    for name, data in checkpoint.tokenizer_files.items():
        (out / name).write_bytes(data)
    return len(tensors)
