"""Schemes as people write them: every form, and what is wrong is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmc.errors import UnsupportedError, UsageError
from llmc.quant.scheme import Scheme, parse_scheme


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("f32", Scheme("f32")), ("bf16", Scheme("bf16")), ("f16/bf16", Scheme("f16", 0, False, "bf16")), ("int4", Scheme("int4", 64, False, "bf16")), ("int8", Scheme("int8", 0, False, "int8")),
        ("int4:g32", Scheme("int4", 32, False, "bf16")), ("int4:g128:asym", Scheme("int4", 128, True, "bf16")), ("int4:channel/int8", Scheme("int4", 0, False, "int8")), ("int4/int8", Scheme("int4", 64, False, "int8")),
        ("int4:asym", Scheme("int4", 64, True, "bf16")), ("int4:channel:asym", Scheme("int4", 0, True, "bf16")), ("int8:g64/bf16", Scheme("int8", 64, False, "bf16")), ("int8/bf16", Scheme("int8", 0, False, "bf16")), (" int4 ", Scheme("int4", 64, False, "bf16")),
    ],
)  # fmt: skip
def test_forms(text, scheme):
    assert parse_scheme(text) == scheme


SCHEMES = st.one_of(
    st.builds(Scheme, st.sampled_from(["f32", "f16", "bf16"]), activations=st.sampled_from(["", "f32", "bf16", "int8"])),
    st.builds(
        Scheme, st.just("int4"), st.sampled_from([0, 32, 64, 128]), st.booleans(), st.sampled_from(["f32", "f16", "bf16", "int8"])
    ),
    st.builds(
        Scheme, st.just("int8"), st.sampled_from([0, 32, 64, 128]), st.just(False), st.sampled_from(["f32", "bf16", "int8"])
    ),
)


@given(SCHEMES)
def test_a_scheme_is_read_back(scheme):
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("int44", "int4"),
        ("bf61", "bf16"),
        ("int4/bf61", "bf16"),
        ("int4:chanel", "channel"),
        ("int4:assym", "asym"),
        ("int4:G64", "g64"),
        ("int4:64", "g64"),
        ("", "int4"),
        ("int4/", ""),
        ("bf16:g64", ""),
        ("f32:asym", ""),
        (":g64", ""),
        ("int4:", ""),
        ("int4:g64:", ""),
        ("int4:g64/bf16/int8", ""),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_right_one(text, hint):
    with pytest.raises(UsageError) as error:
        parse_scheme(text)
    assert hint in error.value.hint


@pytest.mark.parametrize("text", ["int4:g32:g64", "int4:channel:g64", "int4:g64:channel", "int8:asym:asym/bf16"])
def test_contradictions_are_refused(text):
    """Two granularities, or a word twice: one of them would be accepted and ignored."""
    with pytest.raises(UsageError):
        parse_scheme(text)


@pytest.mark.parametrize("text", ["int4:g256", "int4:g0", "int2:g8"])
def test_what_is_known_but_not_built_says_so(text):
    with pytest.raises(UnsupportedError):
        parse_scheme(text)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("int4", "f16", "int4:g64/bf16"),
        ("int8", "f32", "int8:channel/int8"),
        ("int4:g32:scale-int8", "int8", "int4:g32:scale-int8/bf16"),
        ("int4:g32:asym:scale-bf16/int8", "bf16", "int4:g32:asym:scale-bf16/int8"),
        ("int4:g32:scale-f32", "f32", "int4:g32:scale-f32/bf16"),
        ("int4:g32:scale-f16", "f16", "int4:g32/bf16"),
        ("int8:channel:scale-f32", "f32", "int8:channel/int8"),
        ("nvfp4:scale-f32:stored/nvfp4", "f32", "nvfp4:scale-f32:stored/nvfp4"),  # as another tool stored it
        ("fp8_e4m3:block128:scale-f32:stored/bf16", "f32", "fp8_e4m3:block128:scale-f32:stored/bf16"),
    ],
)
def test_scales_are_chosen(text, kind, said):
    scheme = parse_scheme(text)
    assert scheme.scale_kind == kind and str(scheme) == said and parse_scheme(said) == scheme


@pytest.mark.parametrize(
    "text",
    ["int4:scale-f8", "int8:channel:scale-bf16", "mxfp4:scale-f16", "bf16:scale-f16", "int4:g32:scale-bf16:scale-f32", "fp8_e4m3:tensor:scale-bf16"],
)  # fmt: skip
def test_impossible_scales_are_refused(text):
    with pytest.raises(UsageError):
        parse_scheme(text)
