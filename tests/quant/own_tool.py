"""A quantizer as another package would bring it: rounds to nearest and writes a GPTQ checkpoint."""

from __future__ import annotations

METHODS = ("nearest", "broken")
PACKAGES = ("numpy",)
INSTALL = "pip install numpy"


def refusal(method: str, kind: str, bits: int, group: int, symmetric: bool, activations: str) -> str:
    return "" if kind == "int4" else "it has 4 bits alone"


def quantize(asked: dict, kit: object) -> None:
    import sys
    from pathlib import Path

    from llmc.export import export

    assert len(asked["rows"]) > 1 and all(isinstance(i, int) for i in asked["rows"][0])
    if asked["method"] == "broken":
        sys.exit("the second layer has no inverse")
    scheme = f"int4:g{asked['group']}" + ("" if asked["symmetric"] else ":asym")
    rules = [f"{name}=bf16" for name in asked["ignore"] if "embed" not in name and "head" not in name]
    export(asked["source"], Path(asked["out"]), "gptq", quant=scheme, scheme=rules)
