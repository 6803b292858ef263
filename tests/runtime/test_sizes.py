"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llmc.errors import UsageError
from llmc.runtime.sizes import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("80MB", 80_000_000),
        ("80mb", 80_000_000),
        ("1GiB", 1 << 30),
        (" 1.5 GiB ", 3 << 29),
        ("2K", 2048),
        ("3M", 3 << 20),
        ("1G", 1 << 30),
        ("4TB", 4 * 10**12),
        ("1kB", 1000),
        ("5B", 5),
        (4096, 4096),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", " ", "GB", "-1", "1e9", "1,5GB", "80 megabytes", "1..5G", ".5G", "0x10", "inf", "nan", "1GB2", "１GB", -1]
)
def test_what_is_not_a_size(text):
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.integers(0, 1 << 70))
def test_whole_numbers_are_exact(count):
    assert parse_size(str(count)) == count


@given(st.integers(0, 10**14))
@example(999_960)  # rounds up to the next unit
def test_what_is_shown_is_within_its_last_digit(count):
    shown = show_size(count)
    assert abs(parse_size(shown) - count) <= max(0, count * 0.05)
    assert len(shown) <= 8, shown


def test_shown():
    assert [show_size(n) for n in (0, 999, 1000, 97_400_000, 10**12)] == ["0 B", "999 B", "1.0 kB", "97.4 MB", "1.0 TB"]
