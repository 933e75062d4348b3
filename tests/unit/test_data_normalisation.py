"""What counts as the same text: properties of folding, and every place that asks it."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.data.prepare.cleaning.duplicates import NearlySame, SameSessions, SameUtterances
from hanmo.data.prepare.cleaning.steps import RepeatsPrevious, Words
from hanmo.data.prepare.contamination import find_contamination
from hanmo.data.prepare.normalisation import normalised, text_hash
from hanmo.records import Dialogue, Text, write_records

# What is told apart, written by hand; both sides of each pair had one normalised text before.
DIFFERENT = [
    ("(-3)×2", "3×2"),
    ("3×2", "3÷2"),
    ("（-3）*2", "(-3)/2"),
    ("(3)*(2)", "(3)/(2)"),
    ("a>b", "a<b"),
    ("a!=b", "a=b"),
    ("a-b", "a+b"),
    ("2**3", "2*3"),
    ("😀", "😭"),
    ("👨\u200d👩\u200d👧", "👨👩👧"),
    ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "🏴"),
    ("3-5", "35"),
    ("5-(-3)", "53"),
    ("5-(-3)", "5-3"),
    ("x-(-3)", "x3"),
    ("(3,-2)", "(3-2)"),
    ("3:(-2)", "3-2"),
    ("C++", "C#"),
    ("C#", "C"),
    ("C++", "C"),
    ("-5℃", "5℃"),
    ("−5℃", "5℃"),
    ("3.5", "35"),
    ("1,000", "1000"),
    ("1/2", "12"),
    ("3:2", "32"),
    ("涨了50%", "涨了50"),
    ("60km/h", "60kmh"),
    ("R&D", "RD"),
    ("a@b.com", "ab.com"),
    ("$5", "¥5"),
    ("x²", "x"),
    ("-.5", ".5"),
    (".5", "5"),
    ("等于-.5", "等于5"),
    ("(1,-.5)", "(1,.5)"),
    (".NET", "NET"),
    ("用.NET写", "用NET写"),
    ("Node.js", "Nodejs"),
    ("-x", "x"),
    ("(-x)+y", "x+y"),
    ("第3、5条", "第35条"),
    ("3、-2", "3、2"),
    ("9·11", "911"),
    ("2020——2021年", "20202021年"),
]
SAME = [
    ("你好，世界！", "你好 世界"),
    ("ＡＢＣ１２３", "abc123"),
    ("（-3）×２", "(-3) × 2。"),
    ("３－５", "3-5"),
    ("3—5", "3−5"),
    ("−5℃", "- 5 ℃"),
    ("−x", "-x"),
    ("−.5", "-.5"),
    ("f(−x)", "f(－x)"),
    ("第3、5条", "第3，5条"),
    ("9·11", "9・11"),
    ("2020——2021年", "2020-2021年"),
    ("你好、再见", "你好再见"),
    ("他说…OK", "他说OK"),
    ("你好.再见", "你好。再见"),
    ("好的——5个", "好的，5个"),
    ("等于8。", "等于8."),
    ("我有3，你有5", "我有3。你有5"),
    ("你好-再见", "你好……再见"),
    ("是**重点**的", "是“重点”的"),
    ("#话题#好", "话题好"),
    ("和/或", "和、或"),
    ("卡尔·马克思", "卡尔马克思"),
    ("❤\ufe0f", "❤"),
    ("零\u200b宽\ufeff", "零宽"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_symbols_signs_and_operators_tell_texts_apart(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    assert text_hash(f"题目 {one} 吗") != text_hash(f"题目 {other} 吗")


@pytest.mark.parametrize(("one", "other"), SAME)
def test_width_case_white_space_and_punctuation_do_not(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@given(st.text())
def test_folding_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(st.sampled_from("3a好-−–—.,:、·/%*&@#!= ′‰()’\u200d❤\ufe0f🏴\U000e0067×ß\u0301"), max_size=8))
def test_folding_twice_changes_nothing_where_signs_meet(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(min_size=1), st.sampled_from(" \t\n\u3000\xa0\u200b\ufeff"), st.integers(0, 100))
def test_white_space_anywhere_changes_nothing(text: str, space: str, place: int) -> None:
    place %= len(text) + 1
    assert normalised(text[:place] + space + text[place:]) == normalised(text)


words = st.text(st.sampled_from("你好再见天气abcXYZ"), min_size=1, max_size=8)


@given(words, words, st.sampled_from("，。！？、；：“”‘’（）《》【】…—!?;()[]{}\"'"))
def test_punctuation_between_words_changes_nothing(one: str, other: str, mark: str) -> None:
    assert normalised(f"{one}{mark}{other}") == normalised(f"{mark}{one}{other}{mark}") == normalised(one + other)


@given(words)
def test_width_and_case_change_nothing(text: str) -> None:
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)
    assert normalised(wide) == normalised(text.swapcase()) == normalised(text)


SYMBOLS = st.characters(categories=["Sm", "Sc", "So"]).filter(lambda char: unicodedata.is_normalized("NFKC", char))


@given(words, words, SYMBOLS)
def test_every_symbol_tells_texts_apart(one: str, other: str, symbol: str) -> None:
    assert normalised(one + symbol + other) != normalised(one + other)


@given(st.text("0123456789", min_size=1), st.text("0123456789", min_size=1), st.sampled_from(".,:、·/%-×÷+"))
def test_signs_between_digits_tell_numbers_apart(one: str, other: str, sign: str) -> None:
    assert normalised(one + sign + other) != normalised(one + other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_texts_that_differ_in_a_sign_are_neither_duplicates_nor_contamination(
    one: str, other: str, tmp_path: Path
) -> None:
    records = [Dialogue((f"算一下{text}等于多少", f"答案写作{text}")) for text in (one, other)]
    for step in (SameSessions(), SameUtterances(most=1, from_length=1), NearlySame(1.0)):
        assert list(step.faults(records)) == [None, None]
    assert RepeatsPrevious().fault((one, other)) is None
    for name, record in zip(("train", "test"), records, strict=True):
        write_records(tmp_path / f"{name}.jsonl", [record, Text(record.turns[1] * 3)])
    assert find_contamination([tmp_path / "train.jsonl"], [tmp_path / "test.jsonl"], near=None, long=4).found == []


@pytest.mark.parametrize(
    ("word", "hit", "miss"),
    [
        ("+v", "加我+V详聊", "VIP会员"),
        ("c++", "会 C++ 吗", "会C吗"),
        (".com", "上taobao.com看看", "很comfortable"),
        ("3、5", "第3、5条", "第35条"),
        ("-5", "零下 -5 度", "15度"),
        ("50%", "涨50％", "涨50元"),
    ],
)
def test_a_word_of_a_list_keeps_its_symbols(word: str, hit: str, miss: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(word + "\n", encoding="utf-8")
    step = Words(tmp_path / "words.txt")
    assert step.fault((hit,)) is not None
    assert step.fault((miss,)) is None
