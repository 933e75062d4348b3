"""The compiled kernel for jieba's words and longest match: the ids of the exact path, whatever the text."""

from itertools import pairwise

import jieba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hanmo.families.eva.tokenization import EvaTokenizer
from tests.places import PARITY, load, needs_parity

pytest.importorskip("numba", reason="numba is not installed (hanmo[data]); the kernels are not used without it")
from hanmo.tokenizers.kernels import batch, jieba_words
from tests.unit.test_tokenizer_kernels import agree, at_once  # noqa: F401  (a fixture)

SPECIALS = ["<unk>", "<s>", "", "▃", "<sep>", "<pad>", "▂", "<eod>", "<s_0>"]
HAN = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FD5)
# Latin letters, digits and signs in all the ways that jieba cuts them
LATIN = st.text(st.sampled_from("aZ09.%+#&_-"), max_size=8)
pieces = st.one_of(
    st.sampled_from(["今天", "研究", "生命", "起源", "南京市", "长江大桥", "的", "了", "哈", "因为常在此部分读到作者"]),
    st.sampled_from(["C++", "AT&T", "c#", "T恤", "A4纸", "3.14", "50%", "1.5%.", "...", "B超"]),
    st.sampled_from(["，", "。", "！", "“", "…", "＋", "－", "％", " ", "\n", "\r\n", "\r", "\t", "\u3000", "▂", "▃"]),
    st.sampled_from(["😀", "\u3400", "\u9fd5", "\u9fd6", "\ud800", "\0", "<sep>", "a" * 201, "啊" * 201]),
    st.lists(HAN, max_size=6).map("".join),
    LATIN,
    st.text(max_size=4),
)
written = st.lists(pieces, max_size=40).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> EvaTokenizer:
    """All words of two and three characters among many others: an id tells where its word ends."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    jieba.initialize()
    known = [word for word, count in jieba.dt.FREQ.items() if count]
    lines = [*SPECIALS, *known[::2], *(chr(code) for code in range(0x4E00, 0x9FD6)), *map(chr, range(33, 127)), "今天"]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return EvaTokenizer(str(path))


def cut(text: str) -> list[str]:
    """The kernel's words."""
    codes, _ = batch.codes_of([text])
    starts = np.empty(len(codes), np.bool_)
    jieba_words._cut(codes, jieba_words._jieba(), np.empty(len(codes) + 1), np.empty(len(codes), np.int32), starts)
    places = [*np.flatnonzero(starts).tolist(), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def cut_by_jieba(text: str) -> list[str]:
    return [part for word in jieba.cut(text) for part in (word if word == "\r\n" else [word])]


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@example("")
@example("南京市长江大桥" * 60)
@example("啊" * 300)
@example("呜" * 39 + "很好")  # equally probable paths
@example("https://example.com/?q=" + "abcDEF123" * 20 + "今天。，  \n\n\t！")
@example("Python3.8和C++、C#都学过T恤")
@example("因为常在此部分读到作者")  # two paths of the hidden Markov model within 2e-7
@given(st.one_of(written, st.text(HAN)))
def test_words_are_jiebas(text: str) -> None:
    assert cut(text) == cut_by_jieba(text)


@settings(max_examples=300)
@given(st.one_of(LATIN, st.text(st.sampled_from("的了在是aZ09.%+"))))
def test_runs_of_single_characters_are_jiebas(text: str) -> None:
    assert cut(text) == cut_by_jieba(text)


def test_every_character_is_cut_off_as_by_jieba() -> None:
    for code in (*range(0x10000), *range(0x10000, 0x110000, 997)):
        text = f"我们{chr(code)}世界{chr(code)}{chr(code)}的"
        assert cut(text) == cut_by_jieba(text), hex(code)


@settings(max_examples=300, deadline=None)
@example([])
@example(["", "…", "…" * 3, "\r\n", "\r▃"])
@example(["今天…好" * 50, "1" * 200, "1" * 201, "啊" * 201])
@given(st.lists(written, max_size=5))
def test_ids_are_those_of_the_exact_path(tokenizer: EvaTokenizer, given: list[str]) -> None:
    agree(tokenizer, given)


def test_longest_match_by_hand() -> None:
    vocabulary = ("?", "ab", "abcd", "c", "", "b", "ab", "!", "...")
    kernel = jieba_words.kernel(vocabulary, 0, 5, (("！", "!"), ("…", "...")))
    assert kernel is not None
    ids, counts = kernel.encode(["abc", "abcd", "bab", "", "xc", "！", "abcdab", "。…"])
    # of equal lines the last; too long a word is unknown as a whole; dots are words by themselves only in a block
    assert ids.tolist() == [6, 3, 2, 5, 6, 0, 3, 7, 0, 0, 8]
    assert counts.tolist() == [2, 1, 2, 0, 2, 1, 1, 2]


@needs_parity("eva")
def test_recorded_cases_of_eva() -> None:
    recorded = map(load, sorted((PARITY / "eva" / "tokenizer").glob("*.json")))
    sets = [one for one in recorded if "cases" in one]
    assert sets
    for one in sets:
        tokenizer = EvaTokenizer(str(PARITY / "eva" / one["vocab"]))
        assert one["cases"] and tokenizer._kernel() is not None
        encoded = tokenizer.encode_batch([case["text"] for case in one["cases"]])
        assert encoded == [case["ids"] for case in one["cases"]]
