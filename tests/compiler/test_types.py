"""Types and dimensions: their text, their products, and broadcasting as numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmc.compiler.ir.types import DTYPES, Sym, TensorType, broadcast, parse_dim, product
from llmc.errors import VerifyError

DIMS = st.one_of(st.integers(0, 1 << 40), st.builds(Sym, st.sampled_from(["T", "R"]), st.integers(1, 99)))
TYPES = st.builds(TensorType, st.sampled_from(DTYPES), st.lists(DIMS, max_size=5).map(tuple))


@given(DIMS)
def test_a_dimension_is_read_back(dim):
    assert parse_dim(str(dim)) == dim


@given(TYPES)
def test_a_type_is_read_back(kind):
    assert TensorType.parse(str(kind)) == kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f32",
        "f32[",
        "f32]",
        "f33[1]",
        "[1]",
        "f32[-1]",
        "f32[1.5]",
        "f32[T*2]",
        "f32[2*]",
        "f32[1,,2]",
        "f32[1][2]",
        "f32[2**T]",
        "f32[ ,]",
    ],
)
def test_what_is_no_type(text):
    with pytest.raises(VerifyError):
        TensorType.parse(text)


@given(st.lists(st.integers(1, 9), max_size=4), st.lists(st.integers(1, 9), max_size=4))
def test_broadcasting_is_numpys(a, b):
    try:
        expected = np.broadcast_shapes(tuple(a), tuple(b))
    except ValueError:
        with pytest.raises(VerifyError):
            broadcast(tuple(a), tuple(b))
        return
    assert broadcast(tuple(a), tuple(b)) == expected


def test_symbols_broadcast_only_with_themselves_and_one():
    T = Sym("T")
    assert broadcast((T, 1), (1, 5)) == (T, 5)
    for other in ((7,), (Sym("R"),), (Sym("T", 2),)):
        with pytest.raises(VerifyError):
            broadcast((T,), other)


@given(st.lists(st.integers(1, 9), max_size=5), st.integers(0, 4), st.integers(1, 9), st.integers(1, 50))
def test_products_agree_with_concrete_sizes(dims, at, scale, t):
    shape = (*dims[:at], Sym("T", scale), *dims[at:])
    size = product(shape)
    assert isinstance(size, Sym) and size.scale * t == np.prod(TensorType("f32", shape).concrete({"T": t}))


def test_products_of_several_symbols():
    assert product((Sym("T"), 4, Sym("R", 2))) == Sym("R*T", 8) == product((Sym("R"), Sym("T", 8)))
    assert TensorType("f32", (product((Sym("T"), Sym("T"))),)).concrete({"T": 5}) == (25,)
    assert TensorType.parse("f32[4*T*T]") == TensorType("f32", (Sym("T*T", 4),))
