"""PanGu's tokenizer against the recorded cases, in both jieba modes."""

from functools import cache
from typing import Any

import pytest

from hanmo.families.pangu.tokenization import PanguTokenizer
from tests.places import PARITY, VOCAB, load, needs_data, needs_parity

pytestmark = needs_parity("pangu")
RECORDED = load(PARITY / "pangu" / "tokenizer_cases.json", {})
MODES = ("stock", "patched")


@cache
def tokenizer(mode: str) -> PanguTokenizer:
    return PanguTokenizer(str(VOCAB / "pangu" / "vocab.model"), jieba_mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", RECORDED.get("cases", []))
def test_text_to_ids_and_back(case: dict[str, Any], mode: str) -> None:
    ours, expected = tokenizer(mode), case[mode]
    assert ours.segments(case["text"]) == expected["segments"]
    assert ours.encode_plain(case["text"]) == expected["ids"]
    assert ours.encode(case["text"], add_special_tokens=False) == expected["ids"]
    assert ours.encode(case["text"]) == expected["ids_with_special"]
    assert ours.decode(expected["ids"]) == expected["decoded"]
    assert ours.decode(expected["ids"], skip_special_tokens=True) == expected["decoded_skip_special"]


@pytest.mark.parametrize("case", [*RECORDED.get("pair_cases", []), *RECORDED.get("encode_cases", [])])
def test_pairs_truncation_and_padding(case: dict[str, Any]) -> None:
    encoded = tokenizer(case["jieba"])(case["text"], case.get("text_pair"), **case["kwargs"])
    assert dict(encoded) == {name: case[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("case", RECORDED.get("decode_cases", []))
def test_ids_to_text(case: dict[str, Any]) -> None:
    assert tokenizer("patched").decode(case["ids"]) == case["decoded"]
    assert tokenizer("patched").decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]


def test_roles() -> None:
    ours = tokenizer("patched")
    for role, (token, index) in RECORDED["special_tokens"].items():
        assert (getattr(ours, role), getattr(ours, f"{role}_id")) == (token, index)
    assert ours.all_special_tokens == RECORDED["all_special_tokens"]
    assert ours.all_special_ids == RECORDED["all_special_ids"]
    assert ours.vocab_size == len(ours) == RECORDED["vocab_size"]
    assert (ours.padding_side, ours.truncation_side) == (RECORDED["padding_side"], RECORDED["truncation_side"])
    for index, piece in RECORDED["sentencepiece_first_pieces"]:
        assert ours.convert_ids_to_tokens(index) == piece


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_is_its_texts(mode: str, workers: int) -> None:
    texts, ids = zip(*((case["text"], case[mode]["ids"]) for case in RECORDED["cases"]), strict=True)
    assert tokenizer(mode).encode_batch(texts, workers) == list(ids)


@needs_data
@pytest.mark.slow
def test_a_megabyte_of_real_text_as_the_straightforward_way() -> None:
    from benchmarks.common import real_texts
    from benchmarks.tokenizers import pangu_straightforward

    texts = real_texts(1_000_000)
    straightforward = pangu_straightforward(VOCAB / "pangu" / "vocab.model")
    encoded = tokenizer("patched").encode_batch(texts)
    assert [text for text, ids in zip(texts, encoded, strict=True) if ids != straightforward(text)] == []
    short = [text for text in texts if len(text) < 200]
    assert [text for text in short if tokenizer("patched").encode_plain(text) != straightforward(text)] == []
