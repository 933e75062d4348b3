"""The cutting of words: equal to jieba itself, whatever the text."""

from __future__ import annotations

import inspect
import logging
import re
import unicodedata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jieba
import jieba.finalseg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hanmo.families.spread as spreading
from hanmo.families import OURS, load
from hanmo.families.eva.export import standalone
from hanmo.families.fragments import packed
from hanmo.families.spread import spread
from hanmo.families.words import _DOUBTFUL, WordCutter, markov_words, markov_words_of, read_dictionary

logging.getLogger("jieba").setLevel(logging.CRITICAL)
ADDED = ("<s>", "</s>", "<eot>", "<unk>", "<sep>", "<pad>")
PATCHED = re.compile("([\u4e00-\u9fd5a-zA-Z0-9+#&._%\\-<>]+)")
WORDS = sorted(word for word in read_dictionary().scores if len(word) > 1)

# text as jieba meets it: dictionary words run together and cut off, single characters, Latin, digits, separators
pieces = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(WORDS).map(lambda word: word[:-1]),
    st.sampled_from(
        [
            "的",
            "了",
            "\x01",
            "😀",
            "3.14",
            "A4",
            "50%",
            "C++",
            "\r\n",
            "\n",
            " ",
            "，",
            "。",
            "\0",
            "\u3000",
            "<sep>",
            "γ射线",
        ]
    ),
    st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF),
    st.text(max_size=4),
)
texts = st.lists(pieces, max_size=40).map("".join)


@pytest.fixture(scope="module")
def stock() -> jieba.Tokenizer:
    return jieba.Tokenizer()


@pytest.fixture(scope="module")
def extended() -> jieba.Tokenizer:
    tokenizer = jieba.Tokenizer()
    for word in ADDED:
        tokenizer.add_word(word)
    return tokenizer


def as_words(word: str) -> tuple[str]:
    return (word,)


@settings(max_examples=300, deadline=None)
@example("\r\n\r\r\n\n")
@example("南京市长江大桥" * 60)
@example("啊" * 300)
@example("https://example.com/?q=" + "abcDEF123" * 20 + "今天。，  \n\n\t！")
@example("Python3.8和C++、C#都学过T恤")
@example("研究生命的起源A4纸3.14")
@given(texts)
def test_words_are_jiebas(stock: jieba.Tokenizer, text: str) -> None:
    cut = WordCutter(as_words, read_dictionary(), object)
    expected = stock.lcut(text)
    assert cut(text) == expected  # first meeting
    assert cut(text) == expected  # from the table
    assert cut._in_full(text) == expected
    assert cut.many([text, "", text]) == [expected, [], expected]


@settings(max_examples=150, deadline=None)
@given(texts)
def test_words_are_jiebas_with_the_pipelines_changes(extended: jieba.Tokenizer, text: str) -> None:
    cut = WordCutter(as_words, read_dictionary("<>", ADDED), object)
    with patch.object(jieba, "re_han_default", PATCHED):
        expected = extended.lcut(text)
    assert cut(text) == expected
    assert cut.many([text])[0] == expected


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.one_of(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), st.sampled_from("aZ09.%+<")), min_size=1
    )
)
def test_markov_words_are_jiebas(run: str) -> None:
    assert markov_words(run) == list(jieba.finalseg.cut(run))


@settings(max_examples=100, deadline=None)
@example(["的了", "魑魅魍魉", "啊" * 30, "\u9fd5\u4e00"])
@given(st.lists(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FD5), min_size=1), min_size=1))
def test_markov_words_of_many_runs_are_those_of_each(runs: list[str]) -> None:
    assert markov_words_of(runs) == [markov_words(run) for run in runs]


def test_equally_probable_paths_are_computed_in_full(stock: jieba.Tokenizer) -> None:
    """Where two paths tie, jieba's choice hangs on rounding; the table must not answer for such a piece."""
    scores = read_dictionary().scores
    after: dict[str, list[str]] = {}
    for word in (word for word in WORDS if len(word) == 2):
        after.setdefault(word[0], []).append(word)
    tied = []
    for left in (word for word in WORDS[::40] if len(word) == 2 and word[0] in scores):
        for right in after.get(left[1], []):
            if right[1] in scores and abs(scores[left] + scores[right[1]] - scores[left[0]] - scores[right]) < 1e-9:
                tied.append(left + right[1])
    assert len(tied) > 20
    cut = WordCutter(as_words, read_dictionary(), object)
    for piece in tied:
        for text in (piece, piece + "很好", "我说" + piece + "是一个问题", piece * 2 + "的时候"):
            assert cut(text) == stock.lcut(text)
            assert cut.many([text, "你好", text]) == [stock.lcut(text), stock.lcut("你好"), stock.lcut(text)]
    untrusted = [piece for piece in tied if cut._route(piece, whole=True)[1] <= cut.MARGIN]
    assert untrusted
    assert {cut._entry(piece)[3] for piece in untrusted} == {_DOUBTFUL}


def test_a_full_table_is_emptied_and_answers_stay_right(
    stock: jieba.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WordCutter, "TABLE_SIZE", 3)
    cut = WordCutter(as_words, read_dictionary(), object)
    text = "今天天气真不错，我们一起去公园散步吧！" * 3
    assert cut(text) == stock.lcut(text)
    assert cut.many([text, text]) == [stock.lcut(text)] * 2
    assert len(cut._words) <= 3
    before = cut._entries
    assert cut.many(["再见！"]) == [stock.lcut("再见！")]
    assert cut._entries is not before
    assert len(cut._entries) < len(before)


def test_every_character_that_is_not_of_a_block_stands_alone(stock: jieba.Tokenizer) -> None:
    cut = WordCutter(as_words, read_dictionary(), object)
    others = [chr(code) for code in range(0x3000) if unicodedata.category(chr(code)) != "Cs"]
    text = "".join(f"我们{character}世界" for character in others)
    assert cut.many([text])[0] == stock.lcut(text)


def test_jieba_is_left_as_it_was() -> None:
    pattern = jieba.re_han_default.pattern
    WordCutter(as_words, read_dictionary("<>", ADDED), object)("你好<sep>")
    assert jieba.re_han_default.pattern == pattern
    assert "<sep>" not in jieba.dt.FREQ


def test_exported_tokenizers_import_nothing_of_hanmo() -> None:
    for name in OURS:
        path = Path(inspect.getfile(load(name).tokenizer_class))
        text = standalone(path)
        assert "hanmo" not in re.sub(r'""".*?"""|#.*', "", text, flags=re.DOTALL | re.MULTILINE)
        compile(text, str(path), "exec")


def lengths(texts: list[str]) -> list[list[int]]:
    return [list(range(len(text))) for text in texts]


def packed_lengths(texts: list[str]) -> tuple[Any, Any]:
    return packed(lengths(texts), int)


@pytest.mark.parametrize("workers", [None, 1, 2, 5])
def test_spread_keeps_the_order(workers: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "_PART", 10)
    monkeypatch.setattr(spreading, "_WORTH_A_PROCESS", 20)
    given = ["a" * size for size in (3, 0, 12, 1, 0, 9, 30)]
    assert spread(packed_lengths, given, workers) == lengths(given)
    assert spread(packed_lengths, [], workers) == []


def test_an_error_in_a_worker_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "_PART", 1)

    def fail(texts: list[str]) -> tuple[Any, Any]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        spread(fail, ["a", "b"], 2)
