"""Round to nearest: codes in range, errors within half a step or below those of the plain range, and the edges: zeros, outliers, short groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from llmc.quant.algorithms.rtn import quantize
from llmc.quant.scheme import parse_scheme

TEXTS = [
    f"{kind}:{group}{asym}/bf16"
    for kind in ("int4", "int8")
    for group in ("g32", "g64", "g128", "channel")
    for asym in ("", ":asym")
]
# Below 1e-30 the inverse of a scale leaves float32: no checkpoint means such a number.
VALUES = st.floats(-1000, 1000, width=32).map(lambda v: 0.0 if abs(v) < 1e-30 else v)
MATRIX = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 140)), elements=VALUES)


def groups_of(w, scheme):
    """[(rows, columns of a group)] with each group's index."""
    size = scheme.group or w.shape[1]
    return [(g, slice(g * size, min((g + 1) * size, w.shape[1]))) for g in range(-(-w.shape[1] // size))]


def plain_error(part, scheme):
    """What rounding to the range of each row, which nothing clips, is off: float64, with the scale as it is stored."""
    top = (1 << scheme.bits) - 1
    low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
    scale = (high - low) / top if scheme.asymmetric else np.abs(part).max(1) / (top // 2)
    stored = scale.astype(np.float16).astype(np.float64) if scheme.group else scale.astype(np.float32).astype(np.float64)
    scale = np.where((stored == 0) & (scale > 0), 2.0**-24, stored)[:, None]
    divisor = np.where(scale == 0, 1, scale)
    zero = np.clip(np.rint(-low[:, None] / divisor), 0, top) if scheme.asymmetric else top // 2 + 1
    return np.abs((np.clip(np.rint(part / divisor) + zero, 0, top) - zero) * scale - part)


def check(w, scheme):
    codes = quantize(torch.as_tensor(w), scheme)
    back = codes.dequantize(scheme).double().numpy()
    n, k = w.shape
    count = len(groups_of(w, scheme))
    assert codes.codes.shape == (n, k) and codes.codes.dtype == torch.uint8 and int(codes.codes.max()) < 1 << scheme.bits
    assert codes.scales.shape == (n, count) and (codes.zeros is not None) == scheme.asymmetric
    if scheme.group:
        assert torch.equal(codes.scales, codes.scales.half().float()), "a scale is not what float16 stores"
    for g, columns in groups_of(w, scheme):
        part, step = w[:, columns].astype(np.float64), codes.scales[:, g].abs().double().numpy()[:, None]
        error = np.abs(back[:, columns] - part)
        most = np.abs(part).max(1, keepdims=True)
        # Half a step; where the scale is rounded to float16 (2⁻¹¹ of it) the outermost codes miss by that much more. Float16 has
        # steps of 2⁻²⁴ at least: half of one times the largest code.
        slack = most * 2.0**-11 * 1.01 + (2.0**-24 * (1 << scheme.bits) / 2 if scheme.group else 1e-12)
        if scheme.bits < 8:  # ranges are clipped where that lowers the squared error, which it must never raise
            assert (
                np.sum(error**2, 1) <= np.sum(plain_error(part, scheme) ** 2, 1) * (1 + 1e-4) + np.sum((part * 2.0**-22) ** 2, 1)
            ).all()
        else:
            assert (error <= step * 0.5 + slack + (step * 0.51 if scheme.asymmetric else 0)).all(), (error.max(), step.max())
        assert (back[:, columns][part == 0] == 0).all(), "zero is not exact"
    return codes, back


@pytest.mark.parametrize("text", TEXTS)
@given(w=MATRIX)
def test_any_matrix(text, w):
    check(w, parse_scheme(text))


@pytest.mark.parametrize("text", TEXTS)
def test_gaussian_weights_lose_what_their_bits_say(text, random):
    """The noise of a uniform quantizer is step²/12; a scale of the range /15 (or /255) bounds it from above."""
    scheme = parse_scheme(text)
    w = random.normal(size=(64, 512)).astype(np.float32)
    _, back = check(w, scheme)
    size = scheme.group or 512
    span = np.abs(w).reshape(64, -1, size).max(-1) * 2 if not scheme.asymmetric else np.ptp(w.reshape(64, -1, size), -1)
    expected = np.mean((span / ((1 << scheme.bits) - 2)) ** 2 / 12)
    assert 0.5 * expected < np.mean((back - w) ** 2) < 1.15 * expected


@pytest.mark.parametrize("text", TEXTS)
def test_zeros_stay_zeros(text):
    w = np.zeros((2, 100), np.float32)
    w[1, 70:] = 1.0
    codes, back = check(w, parse_scheme(text))
    assert not back[0].any() and not back[1, :64].any() and torch.isfinite(codes.scales).all()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("k", [1, 31, 33, 65, 127, 129])
def test_a_short_last_group_has_its_own_scale(text, k, random):
    """The padding to a whole group must not be seen: the last group alone gives the same codes."""
    scheme = parse_scheme(text)
    w = random.normal(size=(3, k)).astype(np.float32)
    codes, _ = check(w, scheme)
    if scheme.group and k > scheme.group:
        last = groups_of(w, scheme)[-1][1]
        alone = quantize(torch.as_tensor(w[:, last]), scheme)
        assert torch.equal(codes.codes[:, last], alone.codes) and torch.equal(codes.scales[:, -1], alone.scales[:, 0])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e-6, 1e4, 3e5, 1e7])
def test_very_small_and_very_large_weights_stay_finite(text, size, random):
    """Group scales are float16: they must neither vanish nor overflow into infinity."""
    w = (random.normal(size=(2, 128)) * size).astype(np.float32)
    codes = quantize(torch.as_tensor(w), parse_scheme(text))
    back = codes.dequantize(parse_scheme(text)).numpy()
    assert np.isfinite(back).all() and torch.isfinite(codes.scales).all()


def test_the_better_of_two_ranges_is_taken(random):
    """One large negative value: −8 reaches it and the others gain."""
    w = np.full((1, 32), 1.0, np.float32)
    w[0, 0] = -8.0
    codes = quantize(torch.as_tensor(w), parse_scheme("int4:g32"))
    assert float(codes.scales[0, 0]) == 1.0 and int(codes.codes[0, 0]) == 0
    w[0, 0] = 7.0
    assert float(quantize(torch.as_tensor(w), parse_scheme("int4:g32")).scales[0, 0]) in (1.0, -0.875)


def test_the_dtype_of_the_weight_does_not_matter(random):
    w = torch.as_tensor(random.normal(size=(4, 64)), dtype=torch.bfloat16)
    for text in TEXTS:
        a, b = quantize(w, parse_scheme(text)), quantize(w.double(), parse_scheme(text))
        assert torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)


def test_the_weight_is_not_changed(random):
    w = torch.as_tensor(random.normal(size=(4, 70)), dtype=torch.float32)
    before = w.clone()
    for text in TEXTS:
        quantize(w, parse_scheme(text))
    assert torch.equal(w, before)


@pytest.mark.parametrize("text", ["int4:g32:scale-int8", "int3:g16:asym:scale-int8", "nf4:g64:scale-int8"])
def test_scales_of_eight_bits_count_a_power_of_two(text, random):
    """Whole numbers up to 127, at most half of one off; what that costs is far below what the codes cost."""
    from llmc.quant.algorithms.rtn import unit_of

    w = torch.as_tensor(random.normal(size=(24, 192)) * np.exp(random.normal(size=(24, 1))), dtype=torch.float32)
    scheme, plain = parse_scheme(text), parse_scheme(text.replace(":scale-int8", ""))
    codes = quantize(w, scheme)
    counts = codes.scales / unit_of(codes.scales)
    assert torch.equal(counts, counts.round()) and int(counts.abs().max()) <= 127 and int(counts.abs().amax(1).min()) >= 64
    error = [float((c.dequantize(s) - w).square().sum()) for c, s in ((codes, scheme), (quantize(w, plain), plain))]
    assert error[1] * 0.98 < error[0] < error[1] * 1.1
