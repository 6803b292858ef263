"""Attention that a model writes out with a number of each key in its scores: what is one, and what must be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llmc.compiler.ir.graph import Graph, Node, Value
from llmc.compiler.ir.ops.view import View
from llmc.errors import UnsupportedError
from llmc.passes.order import raising_passes
from llmc.passes.raise_attention import refuse_unserved


def raised(imported, graph):
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    return graph


def test_what_keys_add_is_a_channel_of_theirs(front_end):
    imported = front_end("doge")[2]
    graph = raised(imported, imported.graph)
    found = list(graph.find("attention"))
    assert [n.inputs[0].type.shape[2:] for n in found] == [(4, 17)] * 2 and [n.inputs[2].type.shape[3] for n in found] == [16] * 2
    refuse_unserved(graph)


def test_what_queries_add_is_refused(front_end):
    """The same graph with the numbers along the queries instead of the keys."""
    imported = front_end("doge")[2]
    nodes = []
    for node in imported.graph.nodes:
        shape = node.output.type.shape if len(node.outputs) == 1 else ()
        if (
            node.op.name == "expand"
            and len(shape) == 4
            and str(shape[2]) == str(shape[3]) == "T"
            and node.inputs[0].type.dtype != "bool"
        ):
            source = node.inputs[0]
            made = Value(f"{source.name}0000", source.type.with_shape((*source.type.shape[:2], shape[2], 1)))
            nodes.append(Node(View(",".join(map(str, made.type.shape))), (source,), (made,), node.scope, node.source))
            node = replace(node, inputs=(made,))
        nodes.append(node)
    graph = imported.graph
    assert len(nodes) == len(graph.nodes) + 2
    graph = raised(imported, Graph(graph.inputs, graph.params, tuple(nodes), graph.outputs, graph.constants))
    assert not list(graph.find("attention"))
    with pytest.raises(UnsupportedError, match="not recognised as attention"):
        refuse_unserved(graph)
