"""Norms are raised only where the arithmetic is theirs: one wrong constant and the pieces stay."""

from __future__ import annotations

import pytest
from llmc.compiler.ir.graph import Graph, Value
from llmc.compiler.ir.ops.full import Full
from llmc.compiler.ir.ops.pointwise import Pointwise
from llmc.compiler.ir.ops.reduce import Reduce
from llmc.compiler.ir.rewrite import Rewriter
from llmc.compiler.ir.types import Sym, TensorType
from llmc.passes import raise_norm
from llmc.passes.raise_norm import RaiseNorm


def norm(change="", eps=1e-6):
    """x · rsqrt(mean(x²) + eps) · w written out, with one thing changed."""
    kind = TensorType("f32", (1, Sym("T"), 64))
    x, y = Value("%x", kind), Value("%y", kind)
    b = Rewriter(Graph((x, y), (), (), ()))

    def f32(fn, *inputs):
        return b.add(Pointwise(fn, "f32"), inputs)[0]

    source = x
    if change == "layer":
        source = f32("sub", x, b.add(Reduce("mean", (2,), True, "f32"), (x,))[0])
    square = f32("mul", source, y if change == "another factor" else source)
    mean = b.add(
        Reduce(
            "sum" if change == "sum" else "max" if change == "max" else "mean",
            (1,) if change == "over tokens" else (2,),
            True,
            "f32",
        ),
        (square,),
    )[0]
    eps_value = b.add(Full("f32[]", eps), ())[0]
    total = f32("sub" if change == "minus eps" else "add", mean, eps_value)
    normed = f32("mul", y if change == "another value" else source, f32("sqrt" if change == "no reciprocal" else "rsqrt", total))
    weight = b.param("w", TensorType("f32", (64,)))
    return b.finish([f32("mul", normed, weight)])


def ops(graph):
    return [n.op for n in RaiseNorm().run(graph).nodes]


def test_each_norm_is_raised_with_its_eps():
    (rms,) = ops(norm(eps=3e-5))
    assert (rms.name, rms.eps, rms.weight, rms.l2) == ("rms_norm", 3e-5, True, False)
    (layer,) = ops(norm("layer"))
    assert (layer.name, layer.weight, layer.bias) == ("layer_norm", True, False)
    (l2,) = ops(norm("sum"))
    assert l2.name == "rms_norm" and l2.l2


@pytest.mark.parametrize("change", ["another factor", "another value", "max", "over tokens", "minus eps", "no reciprocal"])
def test_what_is_no_norm_is_left_alone(change):
    assert not {o.name for o in ops(norm(change))} & {"rms_norm", "layer_norm"}


@pytest.mark.parametrize("factor", [2.0, 0.5, 0.0])
def test_a_wrong_eps_is_noticed(factor, monkeypatch):
    """The check itself: an implementation that read another eps must be refused at the scale where eps matters."""
    real = raise_norm._match

    def wrong(*args):
        match = real(*args)
        if match is None:
            return None
        from dataclasses import replace

        return replace(match, op=replace(match.op, eps=match.op.eps * factor))

    monkeypatch.setattr(raise_norm, "_match", wrong)
    assert "rms_norm" not in {o.name for o in ops(norm())}
