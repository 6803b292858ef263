"""Attention that a model writes out with numbers of its keys or queries in its scores: what is one, and what must be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llmc.compiler.capture import capture
from llmc.compiler.importer import import_program
from llmc.compiler.ir.graph import Graph, Node, Value
from llmc.compiler.ir.ops.view import View
from llmc.errors import UnsupportedError
from llmc.passes.order import raising_passes
from llmc.passes.raise_attention import refuse_unserved
from models import make_config


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


def test_what_queries_add_by_distance_is_an_operand(front_end):
    imported = front_end("inkling_text")[2]
    graph = raised(imported, imported.graph)
    found = list(graph.find("attention"))
    assert [(n.op.window, n.op.relative, n.inputs[3].type.shape[2:]) for n in found] == [(8, True, (4, 8)), (0, True, (4, 16))]
    refuse_unserved(graph)


def test_a_distance_that_ends_elsewhere_is_refused(front_end):
    """The same graph in which numbers end two positions earlier than there are any: another number than the one that is looked up."""
    imported = front_end("inkling_text")[2]
    nodes = [
        replace(n, op=replace(n.op, value=14.0)) if n.op.name == "full" and n.op.value == 16.0 and "layers.1" in n.scope else n
        for n in imported.graph.nodes
    ]
    graph = imported.graph
    graph = raised(imported, Graph(graph.inputs, graph.params, tuple(nodes), graph.outputs, graph.constants))
    assert len(list(graph.find("attention"))) == 1


def test_a_gain_that_grows_far_away_is_refused():
    """Scores are multiplied by 1 up to position 1000, so that no short text shows that they are multiplied at all."""
    config = make_config("inkling_text", log_scaling_n_floor=1000)
    imported = import_program(capture(config, "f32", 256))
    with pytest.raises(UnsupportedError, match="not recognised as attention"):
        refuse_unserved(raised(imported, imported.graph))
