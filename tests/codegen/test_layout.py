"""Layout's index arithmetic against numpy's own strides."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from llmc.codegen.layout import Buffer, Layout, storage
from llmc.compiler.ir.types import Sym

BUFFER = Buffer(0, "f32", 0)
SHAPE = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def elements(layout, sizes=None):
    """The offsets that a layout gives to all its elements, in order."""
    value = lambda d: d if isinstance(d, int) else d.scale * (sizes or {})[d.name]  # noqa: E731
    shape, strides = [value(d) for d in layout.shape], [value(s) for s in layout.strides]
    out = np.full(shape, layout.offset)
    for axis, (n, s) in enumerate(zip(shape, strides, strict=True)):
        out = out + np.arange(n).reshape([-1 if i == axis else 1 for i in range(len(shape))]) * s
    return out


@st.composite
def walks(draw):
    """A dense layout put through random permutations, slices and expansions, and numpy's array after the same."""
    shape = draw(SHAPE)
    layout, array = Layout.dense(BUFFER, tuple(shape)), np.arange(math.prod(shape)).reshape(shape)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["permute", "slice", "expand"]))
        if kind == "permute":
            order = tuple(draw(st.permutations(range(array.ndim))))
            layout, array = layout.permute(order), array.transpose(order)
        elif kind == "slice":
            axis = draw(st.integers(0, array.ndim - 1))
            start = draw(st.integers(0, array.shape[axis] - 1))
            stop, step = draw(st.integers(start + 1, array.shape[axis])), draw(st.integers(1, 3))
            layout = layout.slice(axis, start, stop, step)
            array = array[tuple(slice(start, stop, step) if i == axis else slice(None) for i in range(array.ndim))]
        else:
            wider = (*[2] * draw(st.integers(0, 1)), *[draw(st.integers(1, 3)) if n == 1 else n for n in array.shape])
            layout, array = layout.expand(wider), np.broadcast_to(array, wider)
    return layout, array


@given(walks())
def test_permutations_slices_and_expansions(walk):
    layout, array = walk
    assert np.array_equal(elements(layout), array)


@given(walks(), st.data())
def test_a_view_is_numpys_reshape_and_none_only_where_numpy_would_copy(walk, data):
    layout, array = walk
    factors, rest = [], array.size
    while rest > 1 and data.draw(st.booleans()):
        d = data.draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
        factors.append(d)
        rest //= d
    shape = (*factors, rest)
    made = layout.view(shape)
    if made is not None:
        assert np.array_equal(elements(made), array.reshape(shape))
    else:
        base = np.lib.stride_tricks.as_strided(array)
        assert not np.shares_memory(base, array.reshape(shape)), f"{array.shape} {array.strides} → {shape} needs no copy"


@given(walks())
def test_rows_are_where_they_say(walk):
    layout, array = walk
    found = layout.rows()
    if found is not None:
        rows, stride, offset = found
        width = array.shape[-1]
        assert np.array_equal(np.arange(rows)[:, None] * stride + offset + np.arange(width), array.reshape(rows, width))


@given(walks())
def test_dense_is_exactly_consecutive(walk):
    layout, array = walk
    assert layout.is_dense == np.array_equal(array.ravel(), np.arange(array.size))


@given(walks(), st.data())
def test_the_c_expression_gives_the_same_place(walk, data):
    layout, array = walk
    index = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
    names = [f"i{a}" for a in range(array.ndim)]
    assert eval(layout.index(names).replace("(ptrdiff_t)", ""), {}, dict(zip(names, index, strict=True))) == array[index]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_views_over_tokens(t, heads, width):
    """[1, T, H·D] ↔ [1, T, H, D] ↔ heads first: what attention does to every model."""
    T, sizes = Sym("T"), {"T": t}
    array = np.arange(t * heads * width).reshape(1, t, heads * width)
    layout = Layout.dense(BUFFER, (1, T, heads * width)).view((1, T, heads, width))
    assert np.array_equal(elements(layout, sizes), array.reshape(1, t, heads, width))
    turned = layout.permute((0, 2, 1, 3))
    assert np.array_equal(elements(turned, sizes), array.reshape(1, t, heads, width).transpose(0, 2, 1, 3))
    back = turned.permute((0, 2, 1, 3)).view((1, T, heads * width))
    assert back is not None and back.is_dense
    merged = turned.view((1, heads * width, T)) if heads > 1 and width > 1 else None
    assume(t > 1 and heads > 1 and width > 1)
    assert merged is None, "a transposition is not a view"


def test_storage():
    assert {d: storage(d) for d in ("bf16", "f64", "i32", "u8", "bool")} == {
        "bf16": "f32",
        "f64": "f32",
        "i32": "i64",
        "u8": "i64",
        "bool": "bool",
    }
