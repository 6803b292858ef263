"""llm-compressor: gptq, awq, smoothquant, and rounding to nearest; integers with or without int8 activations, and fp8."""

from __future__ import annotations

from typing import Any

METHODS = ("gptq", "awq", "smoothquant", "rtn")
PACKAGES = ("llmcompressor",)
INSTALL = "pip install torch llmcompressor"


def refusal(method: str, kind: str, bits: int, group: int, symmetric: bool, activations: str) -> str:
    """Why it cannot choose such codes; empty where it can."""
    if kind == "fp8_e4m3":
        return (
            ""
            if method in ("rtn", "gptq", "smoothquant") and not group
            else "it makes fp8 by channel, by rtn, gptq or smoothquant"
        )
    if not kind.startswith("int") or bits > 8:
        return "it makes integers and fp8_e4m3"
    return "" if activations in ("bf16", "int8", "") else f"with integers it has activations in bf16 or int8, not {activations}"


def quantize(asked: dict[str, Any], kit: Any) -> None:
    """Quantize the folder asked["source"] and write asked["out"]."""
    import re

    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import get_layer_mappings_from_model
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from torch.utils.data import DataLoader

    IntermediatesCache.pin_memory = lambda *_, **__: None  # awq pins memory even where there is no GPU, which raises
    model, tokenizer = kit.dense(asked["source"])
    numbers = {"num_bits": asked["bits"], "type": "float" if asked["kind"] == "fp8_e4m3" else "int"}
    weights = {**numbers, "symmetric": asked["symmetric"], "strategy": "group" if asked["group"] else "channel"}
    if asked["group"]:
        weights["group_size"] = asked["group"]
    scheme = {"targets": ["Linear"], "weights": weights}
    if asked["activations"] in ("int8", "fp8"):
        kind = "float" if asked["activations"] == "fp8" else "int"
        scheme["input_activations"] = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    ignored = [kit.exactly(name) for name in asked["ignore"]]
    options = {"config_groups": {"group_0": scheme}, "ignore": [f"re:{pattern}" for pattern in ignored]}
    names = [name for name, _ in model.named_modules() if any(re.match(pattern, name) for pattern in ignored)]
    mappings = [  # it divides by zero where a mapping has no quantized layer
        m
        for m in get_layer_mappings_from_model(model)
        if not all(any(re.match(b.removeprefix("re:"), name) for name in names) for b in m.balance_layers)
    ]
    recipe = {
        "gptq": lambda: [GPTQModifier(**options)],
        "awq": lambda: [AWQModifier(mappings=mappings), QuantizationModifier(**options)],
        "rtn": lambda: [QuantizationModifier(**options)],
        "smoothquant": lambda: [SmoothQuantModifier(smoothing_strength=0.5), QuantizationModifier(**options)],
    }[asked["method"]]()
    rows = asked["rows"]
    data = None if asked["method"] == "rtn" else DataLoader(kit.batches(rows), batch_size=None)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        recipe=recipe,
        dataset=data,
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
    )
    model.save_pretrained(asked["out"], save_compressed=True)
    tokenizer.save_pretrained(asked["out"])
