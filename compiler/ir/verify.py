"""The verifier: run after every pass; what it accepts, every later stage may rely on."""

from __future__ import annotations

from ...errors import VerifyError
from .graph import Graph
from .types import product


def verify(graph: Graph, after: str = "") -> Graph:
    """Return the graph if it is valid; raise VerifyError that says after which pass, at which node, and what is wrong.

    Checked: every name is defined once and before its use; every node's output types are what its op infers;
    constants have as many numbers as their type says.
    """
    prefix = f"after {after}: " if after else ""
    known = {}
    for value in (*graph.inputs, *graph.params):
        if value.name in known:
            raise VerifyError(f"{prefix}{value.name} is defined twice")
        known[value.name] = value
    for param in graph.params:
        if not param.is_param:
            raise VerifyError(f"{prefix}parameter {param.name} must start with '@'")
    for name, numbers in graph.constants.items():
        if name not in known:
            raise VerifyError(f"{prefix}constant {name} is not a parameter")
        if product(known[name].type.shape) != len(numbers):
            raise VerifyError(f"{prefix}constant {name}: {len(numbers)} numbers for {known[name].type}")
    for node in graph.nodes:
        where = f"{prefix}{node.outputs[0].name} {node.op.name}"
        scope = f" ({node.scope})" if node.scope else ""
        for value in node.inputs:
            if value.name not in known:
                raise VerifyError(f"{where}: {value.name} is used before it is defined{scope}")
            if known[value.name].type != value.type:
                raise VerifyError(f"{where}: {value.name} is {known[value.name].type}, used as {value.type}{scope}")
        try:
            inferred = node.op.infer(*(v.type for v in node.inputs))
        except VerifyError as error:
            raise VerifyError(f"{where}: {error.message}{scope}") from error
        actual = tuple(o.type for o in node.outputs)
        if inferred != actual:
            raise VerifyError(f"{where}: is {', '.join(map(str, actual))}, its op gives {', '.join(map(str, inferred))}{scope}")
        for out in node.outputs:
            if out.name in known:
                raise VerifyError(f"{where}: {out.name} is defined twice{scope}")
            known[out.name] = out
    for value in graph.outputs:
        if value.name not in known:
            raise VerifyError(f"{prefix}the graph returns {value.name}, which nothing defines")
    return graph
