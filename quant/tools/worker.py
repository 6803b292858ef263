"""Run by an interpreter that has another tool: `worker.py SCRIPT REQUEST.json` calls quantize() of that script.

What the scripts share stands here; they are given this module. Imports nothing of llmc: it is not installed there.
"""

from __future__ import annotations

import fnmatch
import json
import os
import runpy
import sys
from typing import Any

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def refuse(condition: object, message: str) -> None:
    """End with a message for a person, if the condition holds."""
    if condition:
        sys.exit(message)


def examples(rows: list[list[int]]) -> list[dict[str, list[int]]]:
    """For tools that take examples of lists."""
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


def batches(rows: list[list[int]]) -> list[dict[str, Any]]:
    """For tools that take batches of one row."""
    import torch

    return [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in rows]


def exactly(name: str) -> str:
    """A regular expression for one module's name."""
    return fnmatch.translate(name).replace("(?s:", "").replace(")\\Z", "$").replace(")\\z", "$")


def dense(folder: str) -> tuple[Any, Any]:
    """The model as it is stored, by transformers, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", device_map="cpu", local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def older(folder: str) -> None:
    """Change a checkpoint's config.json to what transformers 4 reads: rope_theta and rope_scaling, not rope_parameters."""
    where = os.path.join(folder, "config.json")
    with open(where) as stream:
        config = json.load(stream)
    rope = dict(config.pop("rope_parameters", None) or {})
    refuse(any(isinstance(v, dict) for v in rope.values()), "transformers 4 has one rotary embedding for all layers")
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    with open(where, "w") as stream:
        json.dump(config, stream)


def kept(model: Any, prefix: str, ignored: list[str]) -> list[str]:
    """Names, inside a block, of the linears that are not ignored: for tools with one list for all blocks."""
    import torch

    names: dict[str, bool] = {}
    for i, block in enumerate(model.get_submodule(prefix)):
        for name, module in block.named_modules():
            if isinstance(module, torch.nn.Linear):
                skip = f"{prefix}.{i}.{name}" in ignored
                refuse(names.setdefault(name, skip) != skip, f"it cannot leave out {name} in some blocks only")
    return [name for name, skip in names.items() if not skip]


def main(script: str, request: str) -> None:
    with open(request) as stream:
        asked = json.load(stream)
    with open(asked["windows"]) as stream:
        asked["rows"] = json.load(stream)
    os.environ.update(dict.fromkeys(OFFLINE, "1"), CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
    os.dup2(2, 1)  # what tools print is not a result
    runpy.run_path(script)["quantize"](asked, sys.modules["__main__"])


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose files are named like the packages that they use
    main(*sys.argv[1:])
