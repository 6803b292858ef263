"""A quantizer as another package would bring it: rounds to nearest and writes a GPTQ checkpoint. Run as a script with a request."""

from __future__ import annotations

METHODS = ("nearest", "broken")
PACKAGES = ("numpy",)
INSTALL = "pip install numpy"


def refusal(method: str, kind: str, bits: int, group: int, symmetric: bool, activations: str) -> str:
    return "" if kind == "int4" else "it has 4 bits alone"


def main() -> None:
    import json
    import sys
    from pathlib import Path

    from llmc.export import export

    request = json.loads(Path(sys.argv[1]).read_text())
    windows = json.loads(Path(request["windows"]).read_text())
    assert len(windows) > 1 and all(isinstance(i, int) for i in windows[0])
    if request["method"] == "broken":
        sys.exit("the second layer has no inverse")
    scheme = f"int4:g{request['group']}" + ("" if request["symmetric"] else ":asym")
    rules = [f"{name}=bf16" for name in request["ignore"] if "embed" not in name and "head" not in name]
    export(request["source"], Path(request["out"]), "gptq", quant=scheme, scheme=rules)


if __name__ == "__main__":
    main()
