"""The compiled kernels: the ids of the exact path, whatever the text. Without numba there are none to test."""

import copy
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hanmo.tokenizers.base as spreading
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.families.glm.tokenization import GlmTokenizer
from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer
from tests.places import PARITY, VOCAB, load, needs_parity

pytest.importorskip("numba", reason="numba is not installed (hanmo[data]); the kernels are not used without it")
from hanmo.tokenizers.kernels import batch, sentencepiece_bpe
from hanmo.tokenizers.kernels import sentencepiece_proto as models

Tokenizer = EvaTokenizer | GlmTokenizer | TransformerXLTokenizer
SENTENCES = [
    "今天天气很好我们去公园散步",
    "你好世界，问题回答",
    "the cat sat on the mat",
    "天气预报说明天下雨",
    "哈哈哈哈",
]

words = st.one_of(
    st.sampled_from(["今天", "天气", "公园", "散步", "the", "cat", "mat", "哈哈哈", "12,345.6", "的"]),
    st.sampled_from(
        ["，", "。", "！", "Ａ", "１", "　", "①", "½", "㎡", "…", "´", "¨", "ﷺ", "ｶﾞ", "ﾞ", "が", "か\u3099"]
    ),
    st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "\u200b", "\u0301", "e\u0301", "\x00", "\x7f", "\u2581", "\ufeff"]),
    st.sampled_from(
        ["<n>", "<", "n>", "＜n＞", "▃", "<s>", "</s>", "<unk>", "[MASK]", "[", "<|endoftext|>", "< \u0338"]
    ),
    st.sampled_from(["😀", "👨‍👩‍👧", "𠮷", "龘", "각", "\u1100\u1161\u11a8", "\U0010ffff", "\ufffd"]),
    st.text(max_size=4),
)
written = st.lists(words, max_size=30).map("".join)


@cache
def published() -> TransformerXLTokenizer:
    return TransformerXLTokenizer(str(VOCAB / "cog-pretrain.model"))


def _trained(folder: Path, **settings: object) -> str:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "small"),
        hard_vocab_limit=False,
        minloglevel=2,
        **{"model_type": "bpe", "vocab_size": 150, "user_defined_symbols": ["<n>", "▃"]} | settings,
    )
    return str(folder / "small.model")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _trained(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel pays for any text, and parts are small."""
    monkeypatch.setattr(spreading, "_WORTH_A_CALL", 0)
    monkeypatch.setattr(spreading, "_WORTH_A_KERNEL", 0)
    monkeypatch.setattr(spreading, "_PART", 40)


def agree(tokenizer: Tokenizer, given: list[str]) -> None:
    """A kernel finds in lists and in arrays what the tokenizer finds text by text."""
    expected = [tokenizer.encode_plain(text) for text in given]
    assert tokenizer._kernel() is not None
    assert tokenizer.encode_batch(given, 2) == expected
    ids, counts = tokenizer.encode_flat(given, 2)
    assert ids.tolist() == [id_ for text in expected for id_ in text]
    assert counts.tolist() == list(map(len, expected))


@settings(max_examples=300, deadline=None)
@example([])
@example(["", " ", "▁", "\u200b \u200b", " ▁ "])
@example(["哈" * 300, "哈" * 255, "a" * 256, "a" * 257, "好" * 254])
@example(["<n>今天<n>", "<<n>>", "▃▃", "[MASK] 今天 [gMASK]"])
@given(st.lists(written, max_size=5))
def test_ids_are_sentencepieces(small: str, given: list[str]) -> None:
    agree(GlmTokenizer(small), given)
    agree(TransformerXLTokenizer(small), given)


@pytest.mark.skipif(not VOCAB.is_dir(), reason=f"no vocabularies at {VOCAB}; set HANMO_PARITY")
@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(written, st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FD5))), max_size=5))
def test_ids_are_sentencepieces_with_the_published_vocabulary(given: list[str]) -> None:
    agree(published(), given)


CODES = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 37)]


def test_every_character_becomes_what_sentencepiece_makes_of_it(small: str) -> None:
    peer = sentencepiece.SentencePieceProcessor(model_file=small)
    rules = models.read_model(peer.serialized_model_proto()).rules
    expected = [rules.get(code, chr(code)).replace(" ", "\u2581") for code in CODES]
    assert peer.normalize([f"今{chr(code)}天" for code in CODES]) == [f"\u2581今{text}天" for text in expected]


@pytest.mark.slow
def test_every_character_has_sentencepieces_ids(small: str) -> None:
    """On its own, between spaces and between characters."""
    peer = sentencepiece.SentencePieceProcessor(model_file=small)
    kernel = sentencepiece_bpe.kernel(peer.serialized_model_proto())
    assert kernel is not None
    given = [text for code in CODES for text in (chr(code), f"今 {chr(code)} 天", f"今{chr(code)}天")]
    left: list[str] = []
    encoded = kernel.lists(given, lambda text: left.append(text) or peer.encode(text), lambda _: [], 1)
    assert [text for text, ids, own in zip(given, encoded, peer.encode(given), strict=True) if ids != own] == []
    assert set(left) == {"\u2581", "今 \u2581 天", "今\u2581天"}  # sentencepiece's own sign for a space


def test_rules_are_those_of_the_model(small: str) -> None:
    peer = sentencepiece.SentencePieceProcessor(model_file=small)
    read = models.read_model(peer.serialized_model_proto())
    assert [piece.piece for piece in read.pieces] == [peer.id_to_piece(index) for index in range(len(read.pieces))]
    assert [piece.score for piece in read.pieces] == [peer.get_score(index) for index in range(len(read.pieces))]
    assert (read.rules[ord("，")], read.rules[ord("㎡")], read.rules[ord("\n")]) == (",", "m2", " ")
    assert ord("か") in read.starts and 0x3099 in read.follows and ord("今") not in read.starts


@pytest.mark.parametrize(
    "settings",
    [{"model_type": "unigram"}, {"byte_fallback": True, "vocab_size": 400}, {"remove_extra_whitespaces": False}],
)
def test_another_kind_of_model_has_no_kernel(settings: dict[str, object], tmp_path: Path) -> None:
    tokenizer = TransformerXLTokenizer(_trained(tmp_path, **settings))
    assert tokenizer._kernel() is None
    assert tokenizer.encode_batch(["今天  天气"]) == [tokenizer.encode_plain("今天  天气")]


def test_half_a_surrogate_pair_fails_as_without_a_kernel(small: str) -> None:
    tokenizer = TransformerXLTokenizer(small)
    with pytest.raises((UnicodeError, RuntimeError)) as alone:
        tokenizer.encode_plain("今天\ud800")
    with pytest.raises(alone.type):
        tokenizer.encode_batch(["今天", "今天\ud800"])


def test_a_kernel_is_loaded_only_where_it_pays(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "_seen", 0)
    monkeypatch.setattr(spreading, "_WORTH_A_KERNEL", 8)
    monkeypatch.setattr(spreading, "_WORTH_A_CALL", 3)
    tokenizer = TransformerXLTokenizer(small)
    used = [tokenizer._kernel_that_pays([text]) is not None for text in ("今天天气", "今天", "今天天气", "今天")]
    assert used == [False, False, True, False]


def test_a_tokenizer_with_a_kernel_is_copied_and_sent(small: str) -> None:
    tokenizer = GlmTokenizer(small)
    agree(tokenizer, ["今天"])
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        agree(other, ["今天天气[MASK]"])


def _agree_with(tokenizer: Tokenizer, cases: list[dict[str, Any]]) -> None:
    assert cases and tokenizer._kernel() is not None
    assert tokenizer.encode_batch([case["text"] for case in cases]) == [case["ids"] for case in cases]


@needs_parity("glm")
def test_recorded_cases_of_glm() -> None:
    vocabulary = str(VOCAB / "cog-pretrain.model")
    _agree_with(GlmTokenizer(vocabulary), load(PARITY / "glm" / "tokenizer_cases.json")["cases"])
    for name, variant in load(PARITY / "glm" / "megatron" / "tokenizer_cases.json")["variants"].items():
        fixed = not name.startswith("no ")
        _agree_with(GlmTokenizer(vocabulary, flavour="original", fix_command_token=fixed), variant["cases"])


@needs_parity("transformer_xl")
def test_recorded_cases_of_transformer_xl() -> None:
    cases = load(PARITY / "transformer_xl" / "tokenizer" / "cases.json")["encode"]
    _agree_with(published(), cases)


def test_texts_become_code_points() -> None:
    codes, ends = batch.codes_of(["今a", "", "😀\ud800"])
    assert codes.tolist() == [0x4ECA, ord("a"), 0x1F600, 0xD800]
    assert (ends.tolist(), ends.dtype) == ([2, 2, 4], np.int64)
