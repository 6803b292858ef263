"""Rotations are identified by what they do: pairing, offset, scale and every frequency, as the model computed them."""

from __future__ import annotations

import numpy as np
import pytest
from llmc.compiler.ir.graph import Graph, Value
from llmc.compiler.ir.ops.attention import Attention
from llmc.compiler.ir.ops.cast import Cast
from llmc.compiler.ir.ops.concat import Concat
from llmc.compiler.ir.ops.embedding import Embedding
from llmc.compiler.ir.ops.index_select import IndexSelect
from llmc.compiler.ir.ops.pointwise import Pointwise
from llmc.compiler.ir.ops.slice import Slice
from llmc.compiler.ir.ops.view import View
from llmc.compiler.ir.rewrite import Rewriter
from llmc.compiler.ir.types import Sym, TensorType
from llmc.passes.order import cpu_passes
from llmc.passes.raise_rope import RaiseRope


def raised(front_end, key):
    """The rope and rope_table ops that the pass leaves, with their frequencies."""
    imported = front_end(key)[2]
    graph = imported.graph
    for step in cpu_passes(imported.buffers):
        graph = step.run(graph)
        if step.name == "raise_rope":
            break
    ropes = list(graph.find("rope"))
    tables = {n.output.name: n for n in graph.find("rope_table")}
    found = [(r.op, tables[r.inputs[1].name].op, graph.constants[tables[r.inputs[1].name].inputs[1].name]) for r in ropes]
    return found


def default(width, theta=10000.0):
    return theta ** (-np.arange(0, width, 2) / width)


@pytest.mark.parametrize(
    ("key", "count"), [("llama", 4), ("mistral", 4), ("qwen3", 4), ("gemma2", 4), ("olmo2", 4), ("granite", 4)]
)
def test_plain_rotations(key, count, front_end):
    found = raised(front_end, key)
    assert len(found) == count
    for rope, table, frequencies in found:
        assert (rope.interleaved, rope.offset, table.scale) == (False, 0, 1.0)
        assert np.allclose(frequencies, default(16), rtol=1e-5)


def test_llama3_frequencies(front_end):
    found = raised(front_end, "llama@llama3")
    plain = default(16)
    wavelength = 2 * np.pi / plain
    smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
    expected = np.where(
        wavelength > 64 / 1.0, plain / 8, np.where(wavelength < 64 / 4.0, plain, (1 - smooth) * plain / 8 + smooth * plain)
    )
    for _, table, frequencies in found:
        assert table.scale == 1.0 and np.allclose(frequencies, expected, rtol=1e-5)
    assert not np.allclose(expected, plain)


@pytest.mark.parametrize("key", ["llama@yarn", "gpt_oss"])
def test_yarn_scales_the_rotation_too(key, front_end):
    found = raised(front_end, key)
    buffers = dict(front_end(key)[2].buffers)
    inv_freq = next(v for k, v in buffers.items() if k.endswith("inv_freq") and "original" not in k)
    scale = 0.1 * np.log(4.0) + 1.0
    for _, table, frequencies in found:
        assert np.allclose(frequencies, inv_freq, rtol=1e-5) and abs(table.scale - scale) < 1e-6
    assert len(found) == 4 and not np.allclose(inv_freq, default(16), rtol=1e-3)


def test_interleaved_pairs(front_end):
    """cohere2 rotates (2i, 2i+1), and only in its sliding layer."""
    found = raised(front_end, "cohere2")
    assert len(found) == 2 and all(rope.interleaved and rope.offset == 0 for rope, _, _ in found)
    assert all(np.allclose(f, default(16), rtol=1e-5) for _, _, f in found)


@pytest.mark.parametrize(("key", "width"), [("gpt_neox", 4), ("phi3", 8)])
def test_partial_rotations_leave_the_rest(key, width, front_end):
    found = raised(front_end, key)
    assert len(found) == 4
    for rope, _, frequencies in found:
        assert len(frequencies) == width // 2 and not rope.interleaved and rope.offset == 0
        assert np.allclose(frequencies, default(width), rtol=1e-5)


def test_gemma3s_layers_have_their_own_frequencies(front_end):
    found = raised(front_end, "gemma3_text")
    assert len({f for _, _, f in found}) == 2


def rotation_by_hand(broken):
    """A hand-made rotate-half of q and k, right or broken in one way, before an attention."""
    T = Sym("T")
    ids, positions, rows = (
        Value("%input_ids", TensorType("i64", (1, T))),
        Value("%position_ids", TensorType("i64", (1, T))),
        Value("%logits_rows", TensorType("i64", (Sym("R"),))),
    )
    b = Rewriter(Graph((ids, positions, rows), (), (), ()))

    def add(op, *inputs):
        return b.add(op, inputs)[0]

    def f32(fn, *inputs):
        return add(Pointwise(fn, "f32"), *inputs)

    x = add(View("1,T,1,8"), add(Embedding(), b.param("table", TensorType("f32", (16, 8))), ids))
    frequencies = b.constant("f", TensorType("f32", (4,)), (1.0, 0.3, 0.1, 0.03))
    angle = f32("mul", add(View("1,T,1,1"), add(Cast("f32"), positions)), frequencies)
    if broken == "squared position":
        angle = f32("mul", angle, add(View("1,T,1,1"), add(Cast("f32"), positions)))
    angle = add(Concat(3), angle, angle)
    cos, sin = f32("cos", angle), f32("sin", angle)
    half = add(Concat(3), f32("neg", add(Slice(3, 4, 8), x)), add(Slice(3, 0, 4), x))
    if broken == "sign":
        half = add(Concat(3), add(Slice(3, 4, 8), x), add(Slice(3, 0, 4), x))
    turned = f32("add", f32("mul", x, cos), f32("mul", half, sin))
    if broken == "not linear":
        turned = f32("tanh", turned)
    if broken == "growing":
        turned = f32("mul", turned, add(View("1,T,1,1"), add(Cast("f32"), positions)))
    out = add(View("1,T,8"), add(Attention(0, 1.0), turned, turned, x))
    return b.finish([add(IndexSelect(1), out, rows)])


def test_a_right_rotation_is_raised():
    assert len(list(RaiseRope().run(rotation_by_hand("")).find("rope"))) >= 1


@pytest.mark.parametrize("broken", ["sign", "squared position", "not linear", "growing"])
def test_what_is_no_rotation_is_left_alone(broken):
    """Negative controls: each looks like one."""
    assert not list(RaiseRope().run(rotation_by_hand(broken)).find("rope"))
