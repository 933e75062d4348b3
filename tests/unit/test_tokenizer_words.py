"""The cutting of words: equal to jieba itself, whatever the text."""

import inspect
import logging
import re
from pathlib import Path
from unittest.mock import patch

import jieba
import jieba.finalseg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hanmo.tokenizers.base as spreading
from hanmo.families import OURS, load
from hanmo.families.eva.export import standalone
from hanmo.tokenizers.base import encode_in_processes
from hanmo.tokenizers.jieba_exact import WordCutter

logging.getLogger("jieba").setLevel(logging.CRITICAL)
ADDED = ("<s>", "</s>", "<eot>", "<unk>", "<sep>", "<pad>")
PATCHED = re.compile("([\u4e00-\u9fd5a-zA-Z0-9+#&._%\\-<>]+)")
jieba.initialize()
WORDS = sorted(word for word, count in jieba.dt.FREQ.items() if count and len(word) > 1)

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


@settings(max_examples=300)
@example("\r\n\r\r\n\n")
@example("南京市长江大桥" * 60)
@example("啊" * 300)
@example("https://example.com/?q=" + "abcDEF123" * 20 + "今天。，  \n\n\t！")
@example("Python3.8和C++、C#都学过T恤")
@example("研究生命的起源A4纸3.14")
@example("因为常在此部分读到作者")  # two paths of the hidden Markov model within 2e-7
@given(texts)
def test_words_are_jiebas(stock: jieba.Tokenizer, text: str) -> None:
    cut = WordCutter()
    expected = stock.lcut(text)
    assert cut(text) == expected  # first meeting
    assert cut(text) == expected  # from the table


@settings(max_examples=300)
@given(
    st.text(
        st.one_of(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FD5), st.sampled_from("的了在是aZ09.%+")),
        min_size=1,
    )
)
def test_runs_of_single_characters_are_jiebas(run: str) -> None:
    assert WordCutter()._run_words(run) == (
        [*run] if len(run) < 2 or jieba.dt.FREQ.get(run) else list(jieba.finalseg.cut(run))
    )


@settings(max_examples=150)
@given(texts)
def test_words_are_jiebas_with_the_pipelines_changes(extended: jieba.Tokenizer, text: str) -> None:
    with patch.object(jieba, "re_han_default", PATCHED):
        expected = extended.lcut(text)
    assert WordCutter("<>", ADDED)(text) == expected


def test_equally_probable_paths_are_cut_alike(stock: jieba.Tokenizer, extended: jieba.Tokenizer) -> None:
    """Where two paths tie, jieba's choice hangs on the rounding of sums."""
    after: dict[str, list[str]] = {}
    for word in (word for word in WORDS if len(word) == 2):
        after.setdefault(word[0], []).append(word)
    counts = stock.FREQ
    tied = ["呜" * length for length in range(3, 40)]
    for left in (word for word in WORDS[::20] if len(word) == 2 and counts.get(word[0])):
        for right in after.get(left[1], []):
            last = counts.get(right[1])
            if last and counts[left] * last == counts[left[0]] * counts[right]:
                tied.append(left + right[1])
    assert len(tied) > 80
    ours, theirs = (WordCutter(), WordCutter("<>", ADDED)), (stock, extended)
    for piece in tied:
        for text in (piece, piece + "很好", "我说" + piece + "是一个问题", piece + "A4", piece * 2 + "的时候"):
            for cut, peer in zip(ours, theirs, strict=True):
                assert cut(text) == peer.lcut(text)


def test_a_full_table_is_emptied_and_answers_stay_right(
    stock: jieba.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hanmo.tokenizers.jieba_exact.CAPACITY", 3)
    cut = WordCutter()
    for text in ("A4纸，B5纸，C++和T恤，3.14和2.72", "你好，A4纸") * 2:
        assert cut(text) == stock.lcut(text)
        assert 0 < len(cut._blocks) <= 3 and len(cut._runs) <= 3


def test_every_character_is_cut_off_as_by_jieba(stock: jieba.Tokenizer) -> None:
    """The two take different characters for Chinese ones."""
    cut = WordCutter()
    others = [chr(code) for code in (*range(0x10000), *range(0x10000, 0x32000, 31))]
    for character in others:
        text = f"我们{character}世界{character}{character}的"
        assert cut(text) == stock.lcut(text), hex(ord(character))


def test_jieba_is_left_as_it_was() -> None:
    pattern = jieba.re_han_default.pattern
    assert WordCutter("<>", ADDED)("你好<sep>") == ["你好", "<sep>"]
    assert jieba.re_han_default.pattern == pattern
    assert "<sep>" not in jieba.dt.FREQ


def test_exported_tokenizers_import_nothing_of_hanmo() -> None:
    for name in OURS:
        path = Path(inspect.getfile(load(name).tokenizer_class))
        text = standalone(path)
        assert "hanmo" not in re.sub(r'""".*?"""|#.*', "", text, flags=re.DOTALL | re.MULTILINE)
        exec(compile(text, str(path), "exec"), {"__name__": "exported"})  # annotations too are evaluated where they are


def lengths(texts: list[str]) -> list[list[int]]:
    return [list(range(len(text))) for text in texts]


@pytest.mark.parametrize("workers", [None, 1, 2, 5])
def test_processes_keep_the_order(workers: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "_PART", 10)
    monkeypatch.setattr(spreading, "_WORTH_A_PROCESS", 20)
    given = ["a" * size for size in (3, 0, 12, 1, 0, 9, 30)]
    assert encode_in_processes(lengths, given, workers) == lengths(given)
    assert encode_in_processes(lengths, [], workers) == []


def test_an_error_in_a_worker_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "_PART", 1)

    def fail(texts: list[str]) -> list[list[int]]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        encode_in_processes(fail, ["a", "b"], 2)
