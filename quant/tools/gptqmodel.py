"""GPTQModel: gptq, awq, and rounding to nearest. Loads models in bfloat16."""

from __future__ import annotations

from typing import Any

METHODS = ("gptq", "awq", "rtn")
PACKAGES = ("gptqmodel", "optimum")
INSTALL = "pip install torch transformers accelerate optimum gptqmodel"


def refusal(method: str, kind: str, bits: int, group: int, symmetric: bool, activations: str) -> str:
    """Why it cannot choose such codes; empty where it can."""
    wanted = {"gptq": (2, 3, 4, 8), "awq": (4,), "rtn": (4, 8)}[method]
    return "" if kind.startswith("int") and bits in wanted else f"it makes integers of {' or '.join(map(str, wanted))} bits"


def quantize(asked: dict[str, Any], kit: Any) -> None:
    """Quantize the folder asked["source"] and write asked["out"]."""
    import os

    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))  # with its default of one it fails
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig, RTNConfig

    method, size = asked["method"], asked["group"] or -1
    options = {"bits": asked["bits"], "group_size": size, "sym": asked["symmetric"], "device": "cpu", "offload_to_disk": False}
    options["dynamic"] = {f"-:{kit.exactly(name)}": {} for name in asked["ignore"]} or None
    if method == "gptq":
        options.update(desc_act=False, act_group_aware=size > 0)
    model = GPTQModel.load(asked["source"], {"gptq": GPTQConfig, "awq": AWQConfig, "rtn": RTNConfig}[method](**options))
    rows = None if method == "rtn" else kit.examples(asked["rows"])
    model.quantize(rows, batch_size=1, calibration_data_min_length=1)
    model.save(asked["out"])
