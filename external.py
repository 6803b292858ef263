"""`--algorithm TOOL:METHOD`: another tool quantizes the linears, and its checkpoint is compiled as any other of its kind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compile_options import CompileOptions, schemes
from .errors import UsageError

if TYPE_CHECKING:
    import torch

    from .compiler.checkpoint import Checkpoint
    from .compiler.importer import Imported
    from .compiler.ir.graph import Graph
    from .quant.scheme import Scheme
    from .quant.tools.tool import Tool


def quantized_by(
    tool: Tool,
    method: str,
    settings: CompileOptions,
    checkpoint: Checkpoint,
    captured: Any,
    imported: Imported,
    params: Callable[[str], torch.Tensor],
    tokens: torch.Tensor,
    folder: Path,
    *,
    quiet: bool,
) -> tuple[Checkpoint, CompileOptions]:
    """Have `tool` quantize a model's weights, and open what it wrote.

    `params` gives their values, `tokens` the calibration text [windows, length]; `folder` is an empty one. Returns the checkpoint, and the options under which its codes are kept and everything that the tool left alone gets the
    scheme that it would have had. Raises UsageError, UnsupportedError, EnvironmentLacks.
    """
    from transformers.core_model_loading import revert_weight_conversion

    from .compiler.checkpoint_writer import save_checkpoint
    from .compiler.ir.reference import TORCH_DTYPE
    from .passes.order import raising_passes
    from .quant.formats.registry import open_checkpoint
    from .quant.tools.tool import Request

    graph = imported.graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    scheme, rules, ignored = division(graph, settings)
    python = settings.tool_python or sys.executable
    tool.check(method, scheme, python)
    dtype = TORCH_DTYPE[checkpoint.dtype]
    names = [p.name[1:] for p in imported.graph.params if p.name[1:] not in imported.buffers]
    values = {n: v.to(dtype) if (v := params(n)).is_floating_point() else v for n in names}
    save_checkpoint(folder / "dense", checkpoint, revert_weight_conversion(captured.model, values), dtype)
    windows = folder / "windows.json"
    windows.write_text(json.dumps(tokens.tolist()))
    request = Request(
        str(folder / "dense"), str(folder / "quantized"), method, scheme.kind, scheme.bits, scheme.group,
        not scheme.asymmetric, scheme.activations, str(windows), ignored,
    )  # fmt: skip
    tool.run(request, python, folder, quiet=quiet)
    made = open_checkpoint(folder / "quantized", trust_remote_code=settings.trust_remote_code)
    return made, replace(
        settings, quant="none", scheme=rules, activations=scheme.activations, group_size=0, asymmetric=False, algorithm="rtn"
    )


def division(graph: Graph, settings: CompileOptions) -> tuple[Scheme, tuple[str, ...], tuple[str, ...]]:
    """What the tool quantizes, and the rest: its scheme; rules (MODULE=SCHEME) for everything else; modules that it leaves alone."""
    from .passes.quantize import Quantize, calibrated_nodes, is_named, module_of, weight_nodes

    default, rules = schemes(settings)
    plan = Quantize(default, rules).plan(graph)
    chosen = calibrated_nodes(graph, plan)
    theirs: list[Scheme] = []
    left, ignored = [], []
    for node, weight in weight_nodes(graph):
        module, scheme = module_of(weight, graph), plan.get(node.outputs[0].name)
        if node.outputs[0].name in chosen and not is_named(node, weight, graph, rules):
            theirs.append(chosen[node.outputs[0].name])
            continue
        ignored.append(module)
        if scheme is not None:
            left.append(f"{module}={scheme}")
    if not theirs:
        raise UsageError(f"--algorithm {settings.algorithm} has nothing to quantize", "give --quant, such as --quant int4:g128")
    return theirs[0], tuple(left), tuple(dict.fromkeys(ignored))
