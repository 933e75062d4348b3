"""Text that grows: no half characters, nothing of a stop string, and the same text however it arrives."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.serving.text import PENDING, Pieces, StopStrings
from tests.unit.serving import byte_level_tokenizer
from tests.unit.tiny import NAMES, tiny

SMALL = st.text(alphabet="ab好", min_size=0, max_size=12)
STOPS = st.lists(st.text(alphabet="ab好", min_size=1, max_size=4), min_size=1, max_size=3)


def chunked(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[one:two] for one, two in zip(places, places[1:])]  # noqa: B905, RUF007


def shown(text: str, stops: list[str], cuts: list[int], kept: bool = False) -> tuple[str, str | None]:
    strings = StopStrings(stops, kept)
    pieces = [strings.add(piece) for piece in chunked(text, cuts)]
    return "".join([*pieces, strings.finish()]), strings.found


@given(SMALL, st.text(alphabet="ab好", min_size=1, max_size=4), st.lists(st.integers(0, 99), max_size=6))
def test_any_chunking_gives_the_text_before_the_stop(text: str, stop: str, cuts: list[int]) -> None:
    assert shown(text, [stop], cuts) == (text.split(stop)[0], stop if stop in text else None)


@given(SMALL, STOPS, st.lists(st.integers(0, 99), max_size=6), st.booleans())
def test_of_several_stops_the_one_that_is_complete_first_counts(
    text: str, stops: list[str], cuts: list[int], kept: bool
) -> None:
    """By hand: letter after letter, until the text so far ends with one of them; the longest of these."""
    expected: tuple[str, str | None] = (text, None)
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            expected = (text[: end if kept else end - len(stop)], stop)
            break
    assert shown(text, stops, cuts, kept) == expected


@given(SMALL, STOPS)
def test_no_more_is_held_back_than_may_be_the_beginning_of_a_stop(text: str, stops: list[str]) -> None:
    strings = StopStrings(stops)
    out = ""
    for end in range(1, len(text) + 1):
        out += strings.add(text[end - 1])
        if strings.found is not None:
            return
        held = text[len(out) : end]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_inside_one_piece_and_across_many() -> None:
    assert shown("你好。再见", ["。"], []) == ("你好", "。")
    assert shown("abcabd", ["abd"], [1, 2, 3, 4, 5]) == ("abc", "abd")
    assert shown("aab", ["ab"], [1, 2]) == ("a", "ab")


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_every_family_are_the_text_of_all_ids(name: str, tmp_path: Path) -> None:
    family = tiny(name, tmp_path).family
    draw = random.Random(1)
    usual = [id_ for text in ("你好，今天天气怎么样？", "明天去哪里玩\n我们 去吃") for id_ in family.encode(text)]
    for _ in range(50):
        ids = [draw.choice(usual) for _ in range(draw.randrange(1, 20))]
        pieces = Pieces(family.decode)
        told = [pieces.add(id_) for id_ in ids]
        assert "".join([*told, pieces.finish()]) == family.decode(ids)


RARE = "👍🏽𠮷𪚥龘a é́好\u200d"


def test_no_piece_holds_half_a_character() -> None:
    tokenizer = byte_level_tokenizer(RARE)
    ids = tokenizer.encode(RARE)
    assert len(ids) > len(RARE)  # most characters are several tokens
    pieces = Pieces(tokenizer.decode)
    told = [pieces.add(id_) for id_ in ids]
    assert not any("\ufffd" in piece for piece in told)
    assert "".join(told) == RARE and pieces.finish() == ""


def test_half_a_character_at_the_end_is_told_at_the_end() -> None:
    tokenizer = byte_level_tokenizer(RARE)
    pieces = Pieces(tokenizer.decode)
    *most, last = tokenizer.encode("好")
    assert [pieces.add(id_) for id_ in most] == ["", ""] and last
    assert pieces.finish() == "\ufffd"


def test_bytes_that_are_no_characters_do_not_hold_the_text_back_for_ever() -> None:
    tokenizer = byte_level_tokenizer(RARE)
    first = tokenizer.encode("好")[0]
    pieces = Pieces(tokenizer.decode)
    told = [pieces.add(id_) for id_ in [first] * 50 + tokenizer.encode("a")]
    assert told[-1].endswith("a") and any(told[:PENDING])


def test_special_tokens_have_no_text_and_cost_nothing() -> None:
    lengths = []

    def decode(ids: list[int]) -> str:
        lengths.append(len(ids))
        return "".join("ab"[id_] for id_ in ids if id_ < 2)

    pieces = Pieces(decode)
    assert "".join(pieces.add(id_) for id_ in [0, *[9] * 200, 1, *[9] * 200]) == "ab"
    assert max(lengths) <= PENDING + 2
