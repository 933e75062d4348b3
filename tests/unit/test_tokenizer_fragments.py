"""Fragments of text and the table of them: every fragment gets its own values, whatever its length and characters."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanmo.families.fragments import MARK, Crossings, Joined, Table, Values, packed, unpacked

texts = st.lists(st.text(st.sampled_from("天地玄黄aB1😀\u0301\x00"), max_size=30), max_size=6)


def codes(fragments: list[str]) -> tuple[Any, Any]:
    return packed([[ord(character) for character in fragment] for fragment in fragments], numpy.int32)


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, max_size=4), st.integers(1, 7))
def test_a_fragment_is_found_by_all_of_its_characters(batches: list[list[str]], size: int) -> None:
    values = Values(numpy.int32)
    table = Table(codes, values)
    for batch in batches:
        joined = Joined(batch)
        starts = numpy.arange(0, len(joined.text), size)
        ends = numpy.minimum(starts + size, len(joined.text))
        _, flat = values(table(joined, starts, ends))
        fragments = [joined.text[start : start + size] for start in range(0, len(joined.text), size)]
        assert "".join(map(chr, flat)) == "".join(part for part in fragments if part != MARK)  # which has no values


def test_the_table_grows_and_asks_for_each_fragment_once() -> None:
    asked: list[str] = []

    def learn(fragments: list[str]) -> tuple[Any, Any]:
        asked.extend(fragments)
        return codes(fragments)

    values = Values(numpy.int32)
    table = Table(learn, values)
    fragments = [chr(0x4E00 + left) + chr(0x4E00 + right) for left in range(100) for right in range(100)]
    joined = Joined(["".join(fragments * 2)])
    starts = numpy.arange(1, 1 + 4 * len(fragments), 2)
    for _ in range(2):
        _, flat = values(table(joined, starts, starts + 2))
        assert "".join(map(chr, flat)) == "".join(fragments * 2)
    assert sorted(asked) == sorted(fragments)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("天地玄黄", min_size=1, max_size=6), min_size=1, max_size=8), st.text("天地玄黄", max_size=40))
def test_no_word_is_cut(words: list[str], text: str) -> None:
    crossed = Crossings(words)(numpy.array([ord(character) for character in text], numpy.uint32))
    for word in words:
        for start in range(len(text) - len(word) + 1):
            if text.startswith(word, start):
                assert crossed[start : start + len(word) - 1].all()


def test_a_place_that_no_word_crosses_is_one() -> None:
    crossed = Crossings(["天地", "玄黄"])(numpy.array([ord(character) for character in "天地玄黄"], numpy.uint32))
    assert crossed.tolist() == [True, False, True, False]


def test_a_text_with_the_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="mark"):
        Joined(["天", f"地{MARK}"])


@given(st.lists(st.lists(st.integers(0, 9))))
def test_rows_are_packed_and_unpacked(rows: list[list[int]]) -> None:
    assert unpacked(*packed(rows, numpy.int32)) == rows
