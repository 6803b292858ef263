"""Calibration's inner loops in C against the same in torch, float64 where it matters."""

from __future__ import annotations

import pytest
import torch
from llmc.quant import native
from llmc.quant.algorithms.gptq import _inverse_root, _one_by_one
from llmc.quant.algorithms.grid import Grid
from llmc.quant.algorithms.rtn import inverse
from llmc.quant.scheme import parse_scheme
from llmc.runtime.cpu_info import available_levels

SHAPES = [(48, 37), (96, 33), (160, 64)]  # K, N: no multiple of what a strip or a panel holds


@pytest.fixture
def numbers(random):
    made = torch.Generator().manual_seed(int(random.integers(1 << 30)))
    return lambda *shape: torch.randn(*shape, generator=made)


def problem(numbers, k, n, scheme):
    """A weight [N, K], the moments of correlated inputs, and a grid."""
    x = numbers(4 * k, k) @ (numbers(k, k) * 0.3 + torch.eye(k))
    h = x.T @ x
    h.diagonal().add_(0.01 * h.diagonal().mean())
    weight = numbers(n, k)
    return weight, h, Grid.searched(weight, h.diagonal(), parse_scheme(scheme), 32, 10)


@pytest.mark.parametrize("scheme", ["int4:g32/f32", "int3:g32:asym/f32"])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_codes_one_after_the_other(numbers, k, n, scheme):
    weight, h, grid = problem(numbers, k, n, scheme)
    scales, zeros = grid.scales.T.contiguous(), grid.zeros.T.contiguous()

    def nearest(values, group):
        code = grid.nearest(values.clone(), inverse(scales)[group], zeros[group])
        return code, (code - zeros[group]) * scales[group]

    expected = _one_by_one(weight, h, 32, nearest)
    order = torch.argsort(h.diagonal(), descending=True, stable=True)
    got = torch.empty_like(weight)
    got[:, order] = native.round_codes(
        weight[:, order].T, _inverse_root(h, order), native.Places(order // 32, scales, zeros, grid.top)
    ).T
    assert (got == expected).float().mean() > 0.99  # float32 sums in another order: a value half-way may fall either way
    assert got.min() >= 0 and got.max() <= grid.top


@pytest.mark.parametrize("scheme", ["int4:g32/f32", "int2:g32:asym/f32"])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_a_sweep_takes_each_code_to_its_best_value(numbers, k, n, scheme):
    weight, h, grid = problem(numbers, k, n, scheme)
    scales, zeros, group = grid.scales.T.contiguous(), grid.zeros.T.contiguous(), torch.arange(k) // 32
    places = native.Places(group, scales, zeros, grid.top)
    codes = native.round_codes(weight.T, torch.eye(k), places)
    assert torch.equal(codes, grid.rounded(weight, 32).codes.T.float())
    wide, s, z = h.double(), scales[group].double(), zeros[group].double()
    expected = codes.double()
    slope = wide @ (weight.T.double() - (expected - z) * s)
    start = slope.clone()
    for i in range(k):
        new = torch.round((expected[i] - z[i]) + slope[i] / wide[i, i] / s[i]).add(z[i]).clamp(0, grid.top)
        slope -= torch.outer(wide[:, i], (new - expected[i]) * s[i])
        expected[i] = new

    def error(c):
        off = weight.T.double() - (c.double() - z) * s
        return float((off * (wide @ off)).sum())

    before = error(codes)
    native.sweep_codes(start.float(), h, codes, places)
    assert error(codes) < before
    assert abs(error(codes) - error(expected)) < 1e-2 * before
    assert (codes == expected).float().mean() > 0.98


@pytest.mark.skipif(available_levels()[:1] not in (("x86-64-amx",), ("x86-64-v4",)), reason="this CPU has no bfloat16 products")
@pytest.mark.parametrize(("r", "m", "n"), [(1, 1, 1), (7, 13, 33), (801, 97, 70), (3100, 64, 48)])
def test_products_of_bfloat16_factors(numbers, r, m, n):
    a, b = numbers(r, m), numbers(r, n)
    exact = a.bfloat16().double().T @ b.bfloat16().double()
    bound = 1e-6 * max(1.0, r**0.5) * exact.abs().max()
    assert (native.product(a, b, over="rows") - exact).abs().max() < bound
    assert (native.product(a.T.contiguous(), b.T.contiguous(), over="columns") - exact).abs().max() < bound
    assert (native.product(a.T, b.T, over="columns") - exact).abs().max() < bound  # strides of a transposed view
    square = a.bfloat16().double().T @ a.bfloat16().double()
    assert (native.product(a, a, over="rows", triangle=True).triu() - square.triu()).abs().max() < 1e-6 * max(
        1.0, r**0.5
    ) * square.abs().max()


@pytest.mark.parametrize(("size", "groups"), [(16, 3), (40, 1), (128, 2)])
def test_the_best_of_several_grids(numbers, size, groups):
    w, weights = numbers(21, groups, size), numbers(groups, size).abs()
    scales, zeros = numbers(9, 21, groups), numbers(9, 21, groups).abs().round() + 3
    scales[4] = 0
    found = native.best_candidates(w, weights, scales, zeros, 15.0)
    wide, spread = w.double()[None], lambda t: t.double()[..., None]
    codes = ((wide * spread(inverse(scales))).round() + spread(zeros)).clamp(0, 15)
    errors = (((codes - spread(zeros)) * spread(scales) - wide).square() * weights.double()).sum(-1)
    chosen = errors.gather(0, found[None])[0]
    torch.testing.assert_close(chosen, errors.amin(0), rtol=1e-4, atol=1e-6)
