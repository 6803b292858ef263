"""Rotated weights compute what the originals do, and round better."""

from __future__ import annotations

import pytest
import torch
from llmc.compiler.ir.reference import Context, run
from llmc.errors import UnsupportedError
from llmc.passes.order import raising_passes
from llmc.pipeline import front_end, parameters
from llmc.quant.algorithms.rotate import hadamard, rotated, rotation
from llmc.quant.formats.registry import open_checkpoint
from server import tiny


def raised(folder):
    source = open_checkpoint(str(folder))
    captured, imported = front_end(source, "f32", 64)
    graph = imported.graph
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    return imported, graph, parameters(source, captured, imported)


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 28, 36, 64, 96, 576, 896, 960])
def test_hadamard_matrices(size):
    matrix = hadamard(size)
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))
    assert torch.equal(matrix.abs(), torch.ones(size, size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 80, 92])
def test_every_size_has_a_rotation(size):
    matrix = rotation(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("key", ["llama", "qwen2", "qwen3", "phi3", "mixtral", "granite", "mistral"])
def test_rotated_weights_leave_the_logits_as_they_are(checkpoint, key):
    imported, graph, params = raised(checkpoint(key))
    changed, folds = rotated(imported, graph, params)
    tokens = torch.arange(24) % 60 + 3
    original = run(graph, params, tokens, Context.single(24, wide=torch.float64))[0]
    got = run(changed.graph, folds, tokens, Context.single(24, wide=torch.float64))[0]
    torch.testing.assert_close(got, original, rtol=1e-3, atol=1e-3)
    name = "model.embed_tokens.weight"
    assert not torch.allclose(folds(name), params(name).float())


def test_a_tied_head_gets_weights_of_its_own(tmp_path):
    imported, graph, params = raised(tiny.save_model(tmp_path / "tied", tie_word_embeddings=True))
    changed, folds = rotated(imported, graph, params)
    assert len(changed.graph.params) == len(graph.params) + 1
    tokens = torch.arange(24) % 60 + 3
    original = run(graph, params, tokens, Context.single(24, wide=torch.float64))[0]
    torch.testing.assert_close(
        run(changed.graph, folds, tokens, Context.single(24, wide=torch.float64))[0], original, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("key", ["gpt2", "gemma2", "olmo2"])
def test_streams_that_do_not_turn_are_refused(checkpoint, key):
    with pytest.raises(UnsupportedError, match="cannot be rotated"):
        rotated(*raised(checkpoint(key)))


def test_an_artifact_of_rotated_weights(tmp_path):
    import llmc

    text = tmp_path / "t.txt"
    text.write_text(tiny.TEXT * 4, encoding="utf-8")
    report = llmc.compile(
        str(tiny.checkpoint()),
        tmp_path / "a.llmc",
        quant="int8:channel/f32",
        algorithm="rotate+gptq",
        calibration=str(text),
        target=("cpu:native",),
    )
    assert report.conformance["kl_mean"] < 1e-3
    assert report.quant["lm_head"] == "int8:channel/f32"
