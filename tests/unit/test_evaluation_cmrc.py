"""The official metric of CMRC 2018: expected values are worked out by hand from its rules, words as nltk 3.10 cuts them."""

import pytest

from hanmo.evaluation.suites.cmrc import common_run, exact, f1, tokens, words


@pytest.mark.parametrize(
    ("said", "expected", "score", "same"),
    [
        ("小明…", "小明", 0.8, False),  # 小 明 … against 小 明: 2 of 3 and 2 of 2
        ("小明……", "小明", 0.8, False),  # two characters are one word: the official list takes neither away
        ("小…明", "小明", 0.4, False),  # 1 of 3 and 1 of 2
        ("小明。", "小明", 1.0, True),
        ("《小明》", "小-明", 1.0, True),
        ("  HBO电视", "hbo电视", 1.0, True),
        ("小明(北京)", "小明（北京）", 0.4, False),  # ASCII brackets are words: 小 明 ( 北 京 ) against 小 明 北 京
        ("小明,北京", "小明，北京", 4 / 9, False),  # 小 明 , 北 京 against 小 明 北 京
        ("don't知道", "知道", 2 / 3, False),  # do n't 知 道
        ("苹果", "香蕉", 0.0, False),
        ("，。", "，", 0.0, True),  # nothing is left of either
    ],
)
def test_values_by_hand(said: str, expected: str, score: float, same: bool) -> None:
    assert f1(said, [expected]) == pytest.approx(score, abs=1e-12)
    assert exact(said, [expected]) is same


def test_the_best_reference_counts() -> None:
    assert f1("小明…", ["小红", "小明", "小明…"]) == 1 and exact("小明…", ["小明", "小明…"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("hello", ["hello"]),
        ("hello world", ["hello", "world"]),
        ("it's o'brien's dogs'", ["it", "'s", "o'brien", "'s", "dogs", "'"]),
        ("they'll isn't we've i'm he'd", ["they", "'ll", "is", "n't", "we", "'ve", "i", "'m", "he", "'d"]),
        ("cannot gimme gonna gotta lemme wanna", ["can", "not", "gim", "me", "gon", "na", "got", "ta", "lem", "me", "wan", "na"]),
        ("'tis 'twas d'ye more'n", ["'", "tis", "'", "twas", "d", "'ye", "more", "'n"]),
        ("1,000 1,a 3.5 a, b,", ["1,000", "1", ",", "a", "3.5", "a", ",", "b", ","]),
        ("$5 50% #1 a&b x;y @z", ["$", "5", "50", "%", "#", "1", "a", "&", "b", "x", ";", "y", "@", "z"]),
        ("(a) [b] {c} <d>", ["(", "a", ")", "[", "b", "]", "{", "c", "}", "<", "d", ">"]),
        ("what?! no!", ["what", "?", "!", "no", "!"]),
        ("well... yes.. end.", ["well", "...", "yes", "..", "end", "."]),
        ("end.)", ["end", ".", ")"]),
        ('"yes" he said', ["``", "yes", "''", "he", "said"]),
        ("a''b", ["a", "''", "b"]),
        ("x—y–z", ["x", "—", "y", "–", "z"]),
        ("«a» ‘b „c", ["«", "a", "»", "‘", "b", "„", "c"]),
        ("…", ["…"]),
        ("a…… b", ["a……", "b"]),
        ("u.s.a", ["u.s.a"]),
        ("ab. cd. ef", ["ab", ".", "cd", ".", "ef"]),  # three sentences
        ("mr. smith vs. j. doe, no. 5", ["mr.", "smith", "vs.", "j.", "doe", ",", "no", ".", "5"]),
        ("version 2. of u.s. law.", ["version", "2.", "of", "u.s.", "law", "."]),
    ],
)  # fmt: skip
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_characters_stand_alone_and_words_between_them_are_cut() -> None:
    assert tokens("我在NBA's看3,5场（2月）don't！") == [
        "我", "在", "nba", "'s", "看", "3,5", "场", "2", "月", "do", "n't"
    ]  # fmt: skip
    assert tokens("日本のアニメ한국") == ["日", "本", "のアニメ한국"]


def test_the_longest_run_by_hand() -> None:
    assert common_run("abcdef", "zabcyabcdx") == 4 and common_run("", "a") == 0
