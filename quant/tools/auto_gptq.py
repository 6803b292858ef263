"""AutoGPTQ, which is archived: gptq, with transformers 4."""

from __future__ import annotations

from typing import Any

METHODS = ("gptq",)
PACKAGES = ("auto_gptq",)
INSTALL = "pip install torch transformers==4.51.3 accelerate==1.6.0 peft==0.15.2 datasets sentencepiece gekko setuptools; pip install --no-deps auto-gptq==0.7.1"


def refusal(method: str, kind: str, bits: int, group: int, symmetric: bool, activations: str) -> str:
    """Why it cannot choose such codes; empty where it can."""
    return "" if kind.startswith("int") and bits in (2, 3, 4, 8) else "it makes integers of 2, 3, 4 or 8 bits"


def quantize(asked: dict[str, Any], kit: Any) -> None:
    """Quantize the folder asked["source"] and write asked["out"]."""
    import torch

    kit.older(asked["source"])
    from auto_gptq import BaseQuantizeConfig
    from auto_gptq.modeling import _base
    from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

    _base.CUDA_0 = torch.device("cpu")  # it moves every block to the first GPU
    torch.cuda.synchronize = lambda *_: None
    loaded, tokenizer = kit.dense(asked["source"])
    loaded.hf_device_map = {}  # nothing is offloaded
    known = GPTQ_CAUSAL_LM_MODEL_MAP.get(loaded.config.model_type)
    kit.refuse(known is None, f"AutoGPTQ does not know models of the type {loaded.config.model_type}")
    config = BaseQuantizeConfig(bits=asked["bits"], group_size=asked["group"] or -1, sym=asked["symmetric"], desc_act=False)
    model = known(loaded, False, config)  # its from_pretrained refuses to run without CUDA
    names = kit.kept(loaded, model.layers_block_name, asked["ignore"])
    model.inside_layer_modules = [group for g in model.inside_layer_modules if (group := [n for n in g if n in names])]
    model.quantize(kit.batches(asked["rows"]), batch_size=1, use_triton=False, cache_examples_on_gpu=False)
    model.save_quantized(asked["out"], use_safetensors=True)
    tokenizer.save_pretrained(asked["out"])
