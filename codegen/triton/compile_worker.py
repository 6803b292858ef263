"""Compiles Triton kernels ahead of time, with no GPU: `python compile_worker.py`, a process of its own.

Reads one JSON object from standard input: `folder` with the kernels' modules, `family` and `arch`, `kernels` (name, module, function,
signature, constants, warps, stages, registers). Writes NAME.bin into the folder and one JSON line a kernel: name, symbol, shared, warps, scratch
(bytes of device memory a program).
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def compile_one(kernel: dict[str, Any], family: str, arch: str) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"llmc_kernels.{kernel['module']}"), kernel["function"])
    constants = dict(kernel["constants"])
    types = iter(kernel["signature"])
    signature = {name: "constexpr" if name in constants else next(types) for name in function.arg_names}
    pointers = [i for i, name in enumerate(function.arg_names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers if kernel["aligned"]},
    )
    target = (
        GPUTarget("cuda", int(arch[3:]), 32)
        if family == "cuda"
        else GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    )
    options = {"num_warps": kernel["warps"], "num_stages": kernel["stages"], "enable_fp_fusion": True}
    if kernel["registers"]:
        options["maxnreg"] = kernel["registers"]
    made = triton.compile(source, target=target, options=options)
    binary = made.asm["cubin" if family == "cuda" else "hsaco"]
    facts = made.metadata
    scratch = getattr(facts, "global_scratch_size", 0)
    return {"binary": binary, "symbol": facts.name, "shared": facts.shared, "warps": facts.num_warps, "scratch": scratch}


def main() -> None:
    import triton

    triton.knobs.compilation.disable_line_info = True  # else the binaries name the folder
    job = json.load(sys.stdin)
    sys.path.insert(0, job["folder"])
    for kernel in job["kernels"]:
        try:
            made = compile_one(kernel, job["family"], job["arch"])
        except Exception as error:  # whatever Triton raises is the answer for this kernel
            print(json.dumps({"name": kernel["name"], "error": f"{type(error).__name__}: {error}"}), flush=True)
            continue
        (Path(job["folder"]) / f"{kernel['name']}.bin").write_bytes(made.pop("binary"))
        print(json.dumps({"name": kernel["name"], **made}), flush=True)


if __name__ == "__main__":
    main()
