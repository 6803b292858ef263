"""Streaming text: whole characters only, stop strings never seen, and in the end exactly what decoding at once gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmc.runtime.detokenizer import Detokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def byte_level():
    """A token for each byte, and some of several bytes, one of which ends inside a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    merges = []
    for text in ("he", "ll", "hell", "é", "€", "ab", "abc"):
        pieces = "".join(t for t, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text))
        merged = pieces[0]
        for c in pieces[1:]:
            if (merged, c) not in merges:
                merges.append((merged, c))
            merged += c
            vocabulary.setdefault(merged, len(vocabulary))
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return made


TOKENIZER = byte_level()
END = TOKENIZER.token_to_id("<end>")
TEXT = st.text(st.sampled_from("abchel lo.é€😀\n\u0301"), max_size=30)
IDS = st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=30)


def stream(ids, stop=()):
    """Pieces as pushed until the stop string, then the rest."""
    made = Detokenizer(TOKENIZER, stop)
    pieces = []
    for i in ids:
        pieces.append(made.push(i))
        if made.stopped:
            break
    return pieces, made.finish(), made.stopped


@given(TEXT)
def test_a_text_comes_back_whole_and_in_whole_characters(text):
    pieces, rest, stopped = stream(TOKENIZER.encode(text).ids)
    assert "".join(pieces) + rest == text and not stopped
    assert not any("\ufffd" in p for p in pieces)


@given(IDS)
def test_any_bytes_at_all_give_what_decoding_at_once_gives(ids):
    pieces, rest, _ = stream(ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(TEXT)
def test_each_character_is_shown_as_soon_as_it_is_whole(text):
    made, shown = Detokenizer(TOKENIZER), ""
    for c in text:
        for i in TOKENIZER.encode(c).ids:
            shown += made.push(i)
    assert shown == text


@given(TEXT, st.text(st.sampled_from("abchel lo.é€😀\n"), min_size=1, max_size=4))
def test_a_stop_string_never_leaks(text, stop):
    pieces, rest, stopped = stream(TOKENIZER.encode(text).ids, (stop,))
    assert "".join(pieces) + rest == text.partition(stop)[0] and stopped == (stop in text)


@given(TEXT, st.lists(st.text(st.sampled_from("abchel"), min_size=1, max_size=4), min_size=2, max_size=3))
def test_of_several_stop_strings_none_leaks(text, stops):
    pieces, rest, stopped = stream(TOKENIZER.encode(text).ids, tuple(stops))
    out = "".join(pieces) + rest
    assert text.startswith(out) and not any(s in out for s in stops) and stopped == any(s in text for s in stops)
    assert not stopped or any(text[len(out) :].startswith(s) for s in stops)


@given(IDS, st.text(st.sampled_from("abc"), min_size=1, max_size=3))
def test_what_is_held_back_could_still_become_a_stop_string(ids, stop):
    made, shown, fed = Detokenizer(TOKENIZER, (stop,)), "", []
    for i in ids:
        shown += made.push(i)
        fed.append(i)
        if made.stopped:
            return
        plain = "".join(stream(fed)[0])
        held = plain[len(shown) :]
        assert plain.startswith(shown) and len(held) < len(stop) and stop.startswith(held)


def test_special_tokens_are_not_text():
    pieces, rest, _ = stream([*TOKENIZER.encode("a").ids, END, *TOKENIZER.encode("b").ids])
    assert "".join(pieces) + rest == "ab"


def test_half_a_character_at_the_end_is_shown_as_what_it_is():
    half = TOKENIZER.encode("€").ids if len(TOKENIZER.encode("€").ids) > 1 else [TOKENIZER.token_to_id("â")]
    pieces, rest, _ = stream(half[:1])
    assert pieces == [""] and rest == "\ufffd"


@pytest.mark.parametrize("stop", [("l",), ("lo", "hell")])
def test_finishing_after_a_stop_says_nothing(stop):
    _, rest, stopped = stream(TOKENIZER.encode("hello").ids, stop)
    assert stopped and rest == ""
