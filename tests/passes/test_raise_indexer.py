"""Indexers of sparse attention: what is one, and what must be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from llmc.compiler.capture import Mask, VisibleScores
from llmc.compiler.importer import import_program
from llmc.compiler.ir.graph import Graph
from llmc.compiler.ir.ops.pointwise import Pointwise
from llmc.errors import UnsupportedError
from llmc.passes.order import raising_passes
from llmc.passes.raise_attention import refuse_unserved


def raised(imported, graph=None):
    graph = imported.graph if graph is None else graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    return graph


def test_layers_that_share_a_choice_read_one_indexer(front_end):
    graph = raised(front_end("glm_moe_dsa")[2])
    first, second = graph.find("indexer")
    assert (first.op.k, first.inputs[0].type.shape[2:], first.op.scale) == (
        8,
        (16, 16),
        0.25,
    ) and first.op.cache != second.op.cache
    assert [n.inputs[-1] for n in graph.find("attention")] == [first.output, first.output, second.output]
    assert not list(graph.find("best_keys"))
    refuse_unserved(graph)


@pytest.mark.parametrize("fn", ["sigmoid", "silu", "abs", "copy"])
def test_scores_of_another_kind_are_refused(fn, front_end):
    """The same graph with another function in the place of the scores' relu: naming the layer."""
    imported = front_end("glm_moe_dsa")[2]
    nodes = [
        replace(n, op=Pointwise(fn, n.op.dtype)) if getattr(n.op, "fn", "") == "relu" and "layers.2" in n.scope else n
        for n in imported.graph.nodes
    ]
    graph = imported.graph
    graph = raised(imported, Graph(graph.inputs, graph.params, tuple(nodes), graph.outputs, graph.constants))
    assert len(list(graph.find("indexer"))) == 1
    with pytest.raises(UnsupportedError, match=r"model\.layers\.2\.self_attn\.indexer relates all tokens"):
        refuse_unserved(graph)


def test_a_context_within_the_choice_needs_no_indexer(front_end):
    captured = front_end("glm_moe_dsa")[1]
    for context, count in ((8, 0), (9, 2)):
        imported = import_program(replace(captured, context=context))
        graph = raised(imported)
        assert len(list(graph.find("indexer"))) == count and all(n.op.selected == bool(count) for n in graph.find("attention"))


def test_masks_are_only_what_a_choice_needs():
    mask, scores = Mask(causal=True), torch.zeros(1, 3, 3)
    assert mask[:, 0] == mask[:, 0, :, :] == mask and mask.dtype == torch.bool
    seen = scores.masked_fill(~mask, float("-inf"))
    assert isinstance(seen, VisibleScores) and min(5, seen.shape[-1]) == 5
    for wrong in (
        lambda: mask[:, :, 0],
        lambda: mask[:, :, :, :2],
        lambda: mask[1],
        lambda: scores + mask,
        lambda: scores.masked_fill(mask, float("-inf")),
        lambda: scores.masked_fill(~mask, 0.0),
        lambda: torch.where(mask, scores, scores),
        lambda: scores.masked_fill(~Mask(causal=True, window=4), float("-inf")),
        lambda: scores.masked_fill(~Mask(), float("-inf")),
        lambda: seen.topk(2, dim=1),
        lambda: seen.topk(2, largest=False),
    ):
        with pytest.raises(UnsupportedError):
            wrong()


def test_a_choice_among_equal_scores_is_refused(checkpoint, tmp_path):
    """With few heads many scores are 0; where the context is no longer than the choice, nothing is chosen."""
    import llmc

    folder = checkpoint("glm_moe_dsa", index_n_heads=4)
    with pytest.raises(UnsupportedError, match=r"self_attn\.indexer: with 4 heads.*\n.*--context 8"):
        llmc.compile(folder, tmp_path / "a.llmc", target=("cpu:native",))
    report = llmc.compile(folder, tmp_path / "a.llmc", target=("cpu:native",), context=8)
    assert report.conformance["kl_mean"] < 1e-6
