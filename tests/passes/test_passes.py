"""Every pass preserves what every model means; golden files show what each does to a tiny llama."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from llmc.compiler.ir.ops.hadamard import Hadamard
from llmc.compiler.ir.reference import Context, run
from llmc.compiler.ir.rewrite import Rewriter
from llmc.compiler.ir.text import parse_graph, print_graph
from llmc.compiler.ir.types import Sym
from llmc.compiler.ir.verify import verify
from llmc.errors import UsageError
from llmc.passes.order import cpu_passes
from llmc.passes.pass_ import catalog, parse_passes
from llmc.passes.quantize import Quantize
from models import MODELS

GOLDEN = Path(__file__).parent.parent / "golden"


def values(graph, params, tokens, positions, sequences):
    context = Context({}, positions, sequences, torch.float64)
    with torch.no_grad():
        return run(graph, params, tokens, context)[0]


def apart(graph, params, tokens, positions, sequences):
    """The same, each sequence alone."""
    parts = [sequences == s for s in sequences.unique()]
    return torch.cat([values(graph, params, tokens[p], positions[p], sequences[p]) for p in parts], 1)


def written_out(graph):
    """Whether tokens know each other's place in the step: attention, or numbers, that the model writes out itself."""
    return any(n.op.name == "iota" and Sym("T") in n.outputs[0].type.shape for n in graph.nodes) or any(
        o.type.shape.count(Sym("T")) > 1 for n in graph.nodes for o in n.outputs
    )


def parameters(opened, captured, imported):
    bound = opened.bind(captured.model)
    return lambda name: imported.buffers[name] if name in imported.buffers else bound(name)


@pytest.mark.parametrize("key", MODELS)
def test_every_pass_preserves_values(key, front_end, random):
    """Two packed sequences in float64, after the import, after each pass in order, and after each pass once more (idempotent in value)."""
    opened, captured, imported = front_end(key)
    params = parameters(opened, captured, imported)
    tokens = torch.as_tensor(random.integers(3, 256, 30))
    positions = torch.cat([torch.arange(21), torch.arange(9)])
    sequences = torch.cat([torch.zeros(21, dtype=torch.int64), torch.ones(9, dtype=torch.int64)])
    graph = imported.graph
    expected = apart(graph, params, tokens, positions, sequences)
    bound = 1e-6 * max(
        1.0, float(expected.abs().max())
    )  # rope frequencies and attention's table are stored in float32: 2⁻²⁴ · 30 positions
    seen = set()
    for step in cpu_passes(imported.buffers):
        graph = verify(step.run(graph), step.name)
        for again in (graph, verify(step.run(graph), f"{step.name} twice")):
            way = apart if written_out(again) else values  # attention that is not recognised yet knows of one sequence alone
            error = float((way(again, params, tokens, positions, sequences) - expected).abs().max())
            assert error <= bound, f"after {step.name}: {error:.3g}"
        seen.add(step.name)
    assert seen == set(catalog()), "a pass is not in the pipeline: test it here on its own"


@pytest.mark.parametrize("key", [k for k in MODELS if k not in ("glm_moe_dsa", "doge", "inkling_text")])
def test_every_model_raises_to_the_ops_that_kernels_have(key, front_end):
    """A norm or rotation left in pieces would still be right, but slow: this says where."""
    imported = front_end(key)[2]
    graph = imported.graph
    for step in cpu_passes(imported.buffers):
        graph = step.run(graph)
    names = [n.op.name for n in graph.nodes]
    assert (
        names.count("fused_attention") + names.count("recurrence") + (key == "lfm2") == 2
        and "attention" not in names
        and "rope" not in names
    )
    assert not any(getattr(n.op, "fn", "") == "rsqrt" for n in graph.nodes if n.outputs[0].name not in graph.static_values())
    assert all(n.op.rope for n in graph.find("fused_attention")) == (key not in ("gpt2", "cohere2", "bloom", "gpt_neo", "trocr"))


def transformed(graph):
    """The graph with a transform before each down projection, as --algorithm hadamard puts it there."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op.name == "linear" and node.scope.endswith("down_proj"):
            (x,) = rewriter.add_as(node, Hadamard(16), node.inputs[:1])
            rewriter.replace(node.output, rewriter.add_as(node, node.op, (x, *node.inputs[1:]))[0])
        else:
            rewriter.keep(node)
    return rewriter.finish()


def golden(name):
    """(graph before, graph after) the pass at its first place in the pipeline; llama, or a model that writes out what a llama does not."""

    def at(front_end):
        imported = front_end(
            {
                "raise_activation": "gpt2",
                "raise_attention": "bloom",
                "raise_positions": "trocr",
                "raise_indexer": "glm_moe_dsa",
                "compress_latent": "glm_moe_dsa",
            }.get(name, "llama"),
            "bf16",
        )[2]
        graph = imported.graph
        for step in cpu_passes(imported.buffers, Quantize("int4")):
            graph = transformed(graph) if step.name == name == "fuse_hadamard" else graph
            after = step.run(graph)
            if step.name == name:
                return graph, after
            graph = after
        raise AssertionError(f"{name} is not in the pipeline")

    return at


@pytest.mark.parametrize("name", sorted(catalog()))
def test_golden(name, front_end, request):
    """What the pass does to a tiny llama, readable in tests/golden; `pytest --update-golden` writes it anew."""
    made = dict(zip(("before", "after"), map(print_graph, golden(name)(front_end)), strict=True))
    for side, text in made.items():
        file = GOLDEN / f"{name}.{side}.ir"
        if request.config.getoption("--update-golden"):
            file.write_text(text)
        assert file.is_file(), "run pytest --update-golden"
        assert text == file.read_text(), f"{file.name} differs: look at it, then run pytest --update-golden"
        assert parse_graph(text) is not None
    if name in (
        "compress_latent",
        "raise_indexer",
        "raise_norm",
        "raise_rope",
        "raise_activation",
        "quantize",
        "fuse_activation",
        "merge_linears",
        "fuse_residual",
        "fuse_attention",
        "fuse_hadamard",
        "fuse_norm",
        "widen",
    ):
        assert made["before"] != made["after"], f"{name} does nothing to a llama"


def test_passes_are_parsed_with_their_options():
    (first, second) = parse_passes("simplify,quantize{scheme=int8:channel/int8}")
    assert first.name == "simplify" and second.name == "quantize" and second.scheme == "int8:channel/int8"
    assert parse_passes("raise-norm")[0].name == "raise_norm"
    assert parse_passes("") == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("simplfy", "simplify"),
        ("quantise", "quantize"),
        ("simplify,raise_rop", "raise_rope"),
        ("quantize{schem=int4}", "scheme"),
        ("simplify{a=1}", ""),
        ("quantize{scheme}", "scheme"),
        ("simplify{", ""),
        ("{}", ""),
        ("simplify,,fuse_norm", ""),
        ("simplify}", ""),
        ("simplify;fuse_norm", ""),
    ],
)
def test_wrong_passes_are_errors_that_name_the_nearest(text, hint):
    with pytest.raises(UsageError) as error:
        parse_passes(text)
    assert hint in str(error.value)


def test_pass_options_are_their_fields():
    for name, cls in catalog().items():
        assert cls.name == name and cls.__doc__ and all(f.name.isidentifier() for f in fields(cls))
