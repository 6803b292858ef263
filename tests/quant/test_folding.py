"""Dividing inputs by factors and multiplying their weights changes nothing, whatever the architecture."""

from __future__ import annotations

import pytest
import torch
from llmc.compiler.ir.reference import Context, run
from llmc.passes.order import raising_passes
from llmc.passes.quantize import weight_nodes
from llmc.pipeline import front_end, parameters
from llmc.quant.folding import Folds, regions
from llmc.quant.formats.registry import open_checkpoint

FOUND = {  # regions in two layers: norms before attention and MLP, values, and the product of gate and up
    "llama": 8, "qwen2": 8, "gemma2": 8, "phi3": 8, "gpt2": 6, "mixtral": 6, "granite": 8, "olmo2": 4, "cohere2": 6,
}  # fmt: skip


@pytest.mark.parametrize("key", list(FOUND))
def test_folded_factors_leave_the_logits_as_they_are(checkpoint, key):
    source = open_checkpoint(str(checkpoint(key)))
    captured, imported = front_end(source, "f32", 64)
    params = parameters(source, captured, imported)
    graph = imported.graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    found = regions(graph, {n.outputs[0].name for n, _ in weight_nodes(graph)})
    assert len(found) == FOUND[key]
    random = torch.Generator().manual_seed(0)
    folds = Folds(params)
    for region in found.values():
        factors = torch.ones(int(region.rows.max()) + 1)
        mine = region.rows.unique()
        factors[mine] = torch.rand(mine.numel(), generator=random) + 0.5
        for place in region.absorbers:
            size = params(place.param).shape[place.axis]
            folds.multiply(place, 1 / torch.nn.functional.pad(factors, (0, size - factors.numel()), value=1.0))
        for _, place in region.weights:
            folds.multiply(place, factors[region.rows])
    tokens = torch.arange(24) % 60 + 3
    original, changed = (
        run(graph, source_of, tokens, Context.single(24, wide=torch.float64))[0] for source_of in (params, folds)
    )
    assert any(not torch.equal(params(r.absorbers[0].param), folds(r.absorbers[0].param)) for r in found.values())
    torch.testing.assert_close(changed, original, rtol=1e-3, atol=1e-4)
