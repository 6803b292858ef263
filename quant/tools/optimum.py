"""optimum's GPTQ, for models whose blocks are model.layers."""

from __future__ import annotations

from typing import Any

METHODS = ("gptq",)
PACKAGES = ("optimum", "gptqmodel")
INSTALL = "pip install torch transformers accelerate optimum gptqmodel"


def refusal(method: str, kind: str, bits: int, group: int, symmetric: bool, activations: str) -> str:
    """Why it cannot choose such codes; empty where it can."""
    return "" if kind.startswith("int") and bits in (2, 3, 4, 8) else "it makes integers of 2, 3, 4 or 8 bits"


def quantize(asked: dict[str, Any], kit: Any) -> None:
    """Quantize the folder asked["source"] and write asked["out"]."""
    import torch
    from optimum.gptq import GPTQQuantizer

    model, tokenizer = kit.dense(asked["source"])
    size, rows = asked["group"] or -1, asked["rows"]
    quantizer = GPTQQuantizer(
        bits=asked["bits"],
        group_size=size,
        sym=asked["symmetric"],
        desc_act=False,
        act_group_aware=size > 0,
        dataset=kit.batches(rows),
        model_seqlen=len(rows[0]),
        block_name_to_quantize="model.layers",
        modules_in_block_to_quantize=[[name] for name in kit.kept(model, "model.layers", asked["ignore"])],
    )
    with torch.no_grad():
        quantizer.quantize_model(model, tokenizer)
    quantizer.dataset = None  # it would go into config.json
    model.config.quantization_config.update(dataset=None)
    quantizer.save(model, asked["out"])
    tokenizer.save_pretrained(asked["out"])
