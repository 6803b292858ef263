"""Static values first: what depends on weights alone comes before what depends on tokens."""

from __future__ import annotations

from ..compiler.ir.graph import Graph


def hoisted(graph: Graph) -> Graph:
    """The same graph with its static nodes moved to the front, so that a pass may use any weight at any node."""
    static = graph.static_values()
    first = [n for n in graph.nodes if n.outputs[0].name in static]
    rest = [n for n in graph.nodes if n.outputs[0].name not in static]
    return Graph(graph.inputs, graph.params, (*first, *rest), graph.outputs, graph.constants)
