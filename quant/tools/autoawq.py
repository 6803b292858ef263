"""AutoAWQ, which is archived: awq of 4 bits with zero points, with transformers 4."""

from __future__ import annotations

from typing import Any

METHODS = ("awq",)
PACKAGES = ("awq",)
INSTALL = "pip install torch transformers==4.51.3 accelerate==1.6.0 datasets zstandard wheel setuptools; pip install --no-deps autoawq==0.2.9"
NEEDED = ("q_proj", "o_proj", "gate_proj", "down_proj")


def refusal(method: str, kind: str, bits: int, group: int, symmetric: bool, activations: str) -> str:
    """Why it cannot choose such codes; empty where it can."""
    return "" if kind == "int4" and group and not symmetric else "it makes 4 bits with zero points, in groups: int4:g128:asym"


def quantize(asked: dict[str, Any], kit: Any) -> None:
    """Quantize the folder asked["source"] and write asked["out"]."""
    kit.older(asked["source"])
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked["source"], local_files_only=True)
    model = AutoAWQForCausalLM.from_pretrained(asked["source"], torch_dtype="auto", device_map="cpu", local_files_only=True)
    all_names = kit.kept(model.model, "model.layers", [])
    skip = sorted(set(all_names) - set(kit.kept(model.model, "model.layers", asked["ignore"])))
    needed = [name for name in skip if name.endswith(NEEDED)]
    kit.refuse(needed, f"it scales by the inputs of {', '.join(needed)}, and cannot leave it out")
    config = {"w_bit": 4, "q_group_size": asked["group"], "zero_point": True, "version": "GEMM", "modules_to_not_convert": skip}
    rows = asked["rows"]
    model.quantize(tokenizer, config, calib_data=rows, max_calib_samples=len(rows), max_calib_seq_len=len(rows[0]))
    model.save_quantized(asked["out"])
    tokenizer.save_pretrained(asked["out"])
