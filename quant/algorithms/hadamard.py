"""Hadamard transforms at run time (QuaRot, Ashkboos et al., 2024), of the inputs that no rotation can be folded into.

A gate times its values, or attention's output, has a few large channels that 8 bits spend their range on. Both sides of the product
are transformed, the weight here, the input as it is rounded for the product: K·log K additions a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from ...compiler.importer import Imported
from ...compiler.ir.graph import Graph, Value
from ...compiler.ir.ops.cast import Cast
from ...compiler.ir.ops.hadamard import Hadamard, transformed
from ...compiler.ir.ops.index_select import IndexSelect
from ...compiler.ir.ops.layer_norm import LayerNorm
from ...compiler.ir.ops.linear import Linear
from ...compiler.ir.ops.rms_norm import RmsNorm
from ...compiler.ir.ops.view import View
from ...compiler.ir.reference import ParamSource
from ...compiler.ir.rewrite import Rewriter
from ...errors import UnsupportedError
from ..folding import Finder, Folds, Place
from ..scheme import Scheme

MOST, LEAST = 512, 16  # values in a block
UNEVEN = ("int8", "mxfp4", "nvfp4")  # roundings of activations that suffer from large values


def transformed_inputs(
    imported: Imported, graph: Graph, params: ParamSource, plan: Mapping[str, Scheme]
) -> tuple[Imported, Folds]:
    """The raised `graph` with transforms before the products that `plan` names (by their output), and their weights to match.

    Products of norms are left alone: rotations and factors are folded into those at no cost. Raises UnsupportedError where no
    product has inputs to transform.
    """
    finder, folds, rewriter = Finder(graph), Folds(params), Rewriter(graph)
    found = 0
    for node in graph.nodes:
        scheme, x = plan.get(node.outputs[0].name), node.inputs[0] if node.inputs else None
        wanted = isinstance(node.op, Linear) and scheme is not None and scheme.is_coded and scheme.activations in UNEVEN
        if not wanted or x is None or _is_normed(x, finder):
            rewriter.keep(node)
            continue
        place, block = finder.place(node.inputs[1], 1), block_of(x.type.shape[-1])
        if place is None or not block:
            rewriter.keep(node)
            continue
        found += 1
        folds.change(place.param, partial(_along, place=place, block=block))
        (turned,) = rewriter.add_as(node, Hadamard(block), (x,))
        (out,) = rewriter.add_as(node, node.op, (turned, *node.inputs[1:]))
        rewriter.replace(node.output, out)
    if not found:
        raise UnsupportedError(
            "hadamard transforms inputs that are rounded to few bits, and no product has such",
            "give a scheme with int8 activations, such as --quant int8, or another --algorithm",
        )
    return replace(imported, graph=rewriter.finish()), folds


def block_of(width: object) -> int:
    """The largest power of two that divides a width, at most MOST; 0 where it is less than LEAST."""
    assert isinstance(width, int)
    block = min(width & -width, MOST)
    return block if block >= LEAST else 0


def _is_normed(x: Value, finder: Finder) -> bool:
    """Whether a value is a norm's output, or rows of it."""
    made = finder.made.get(x.name)
    while made is not None and isinstance(made.op, Cast | View | IndexSelect):
        made = finder.made.get(made.inputs[0].name)
    return made is not None and isinstance(made.op, RmsNorm | LayerNorm)


def _along(tensor: torch.Tensor, place: Place, block: int) -> torch.Tensor:
    return transformed(tensor.movedim(place.axis, -1), block).movedim(-1, place.axis).contiguous()
