"""Hadamard transforms of products' inputs: nothing changes but how evenly the values are spread that 8 bits round."""

from __future__ import annotations

import llmc
import pytest
import torch
from llmc.compiler.ir.ops.hadamard import transformed
from llmc.compiler.ir.reference import Context, run
from llmc.errors import UnsupportedError, UsageError
from llmc.export import export
from llmc.passes.order import raising_passes
from llmc.pipeline import front_end, parameters
from llmc.quant.algorithms.hadamard import block_of, transformed_inputs
from llmc.quant.algorithms.rotate import hadamard
from llmc.quant.formats.registry import open_checkpoint
from llmc.quant.scheme import parse_scheme
from safetensors.torch import load_file, save_file
from server import tiny

INT8 = parse_scheme("int8")


@pytest.mark.parametrize("block", [2, 16, 64, 512])
def test_blocks_are_multiplied_by_a_hadamard_matrix(block):
    x = torch.randn(3, 3 * block, dtype=torch.float64)
    wanted = (x.reshape(3, 3, block) @ hadamard(block) / block**0.5).reshape(x.shape)
    torch.testing.assert_close(transformed(x, block), wanted)
    torch.testing.assert_close(transformed(transformed(x, block), block), x)


@pytest.mark.parametrize(("width", "block"), [(576, 64), (1536, 512), (4096, 512), (48, 16), (24, 0), (100, 0)])
def test_blocks_are_powers_of_two_that_divide_the_width(width, block):
    assert block_of(width) == block


@pytest.mark.parametrize("key", ["llama", "qwen2", "phi3", "gpt2", "gemma2", "bloom"])
def test_transformed_products_leave_the_logits_as_they_are(checkpoint, key):
    source = open_checkpoint(str(checkpoint(key)))
    captured, imported = front_end(source, "f32", 64)
    graph, params = imported.graph, parameters(source, captured, imported)
    for step in raising_passes(imported.buffers):
        graph = step.run(graph)
    changed, folds = transformed_inputs(imported, graph, params, {n.outputs[0].name: INT8 for n in graph.find("linear")})
    assert any(n.op.name == "hadamard" for n in changed.graph.nodes)
    tokens = torch.arange(24) % 60 + 3
    context = Context.single(24, wide=torch.float64)
    original = run(graph, params, tokens, context)[0]
    torch.testing.assert_close(run(changed.graph, folds, tokens, context)[0], original, rtol=1e-3, atol=1e-3)


@pytest.fixture
def uneven(tmp_path):
    """A model with one channel of gate × up that is far larger than the others, as those of trained models are."""
    where = tiny.save_model(tmp_path / "uneven", hidden_size=64, intermediate_size=192, head_dim=16)
    tiny.save_tokenizer(where)
    tensors = load_file(where / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("up_proj.weight"):
            tensor[5] *= 300
        if name.endswith("down_proj.weight"):
            tensor[:, 5] /= 300
    save_file(tensors, where / "model.safetensors", {"format": "pt"})
    return where


def test_eight_bits_lose_less(uneven, tmp_path):
    kl = {}
    for algorithm in ("rtn", "hadamard", "hadamard+gptq"):
        report = llmc.compile(
            uneven, tmp_path / f"{algorithm}.llmc", quant="int8", algorithm=algorithm, target=("cpu:native",), dtype="f32"
        )
        kl[algorithm] = report.conformance["kl_mean"]
    assert kl["hadamard"] < kl["rtn"] / 3, kl
    assert kl["hadamard+gptq"] < kl["rtn"] / 3, kl


def test_the_transform_is_part_of_the_product(uneven, tmp_path, capsys):
    from llmc.cli.main import run as command

    llmc.compile(uneven, tmp_path / "a.llmc", quant="int8", algorithm="hadamard", target=("cpu:native",), dump_ir=tmp_path / "ir")
    last = sorted((tmp_path / "ir").iterdir())[-1].read_text()
    assert "hadamard=64" in last and "= hadamard" not in last
    assert command(["verify", str(tmp_path / "a.llmc"), "--rebuild"]) == 0


def test_what_it_does_nothing_for_is_refused(uneven, tmp_path):
    with pytest.raises(UnsupportedError, match="int8 activations"):
        llmc.compile(uneven, tmp_path / "a.llmc", quant="int4", algorithm="hadamard", target=("cpu:native",))
    with pytest.raises(UsageError, match="two of a kind"):
        llmc.compile(uneven, tmp_path / "a.llmc", quant="int8", algorithm="hadamard+hadamard", target=("cpu:native",))
    with pytest.raises(UnsupportedError, match="turned weights"):
        export(str(uneven), tmp_path / "x", "gptq", quant="int8", algorithm="hadamard+gptq")
