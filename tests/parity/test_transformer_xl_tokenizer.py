"""文汇's tokenizer against the recorded cases."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer
from tests.places import PARITY, VOCAB, load, needs_parity

pytestmark = needs_parity("transformer_xl")
RECORDED = load(PARITY / "transformer_xl" / "tokenizer" / "cases.json", {})


@cache
def tokenizer(add_eop: bool = False) -> TransformerXLTokenizer:
    return TransformerXLTokenizer(str(VOCAB / "cog-pretrain.model"), add_eop=add_eop)


@pytest.mark.parametrize("case", RECORDED.get("encode", []))
def test_text_to_ids_and_back(case: dict[str, Any]) -> None:
    assert tokenizer().encode(case["text"]) == case["ids"]
    assert tokenizer()(case["text"])["input_ids"] == case["ids"]
    assert tokenizer().encode_batch([case["text"], ""], 2) == [case["ids"], []]
    assert tokenizer().tokenize(case["text"]) == case["pieces"]
    for published in (False, True):
        assert tokenizer().decode(case["ids"], published=published) == case["decoded"]
    assert (case["text"] == case["decoded"]) == case["lossless"]


@pytest.mark.parametrize(
    ("add_eop", "case"),
    [
        *((False, case) for case in RECORDED.get("decode", [])),
        *((True, case) for case in RECORDED.get("decode_with_eop_tokenizer", [])),
    ],
)
def test_published_decoding(add_eop: bool, case: dict[str, Any]) -> None:
    if "error" in case:
        kind, message = case["error"].split(": ", 1)
        assert kind == "IndexError"
        with pytest.raises(IndexError, match=message):
            tokenizer(add_eop).decode(case["ids"], published=True)
    else:
        assert tokenizer(add_eop).decode(case["ids"], published=True) == case["text"]


@pytest.mark.parametrize(
    ("add_eop", "case"),
    [
        *((False, case) for case in RECORDED.get("id_to_token", [])),
        *((True, case) for case in RECORDED.get("id_to_token_with_eop", [])),
    ],
)
def test_published_id_to_token(add_eop: bool, case: dict[str, Any]) -> None:
    assert tokenizer(add_eop).convert_ids_to_tokens(case["id"], published=True) == case["token"]


@pytest.mark.parametrize("case", RECORDED.get("token_to_id", []))
def test_published_token_to_id(case: dict[str, Any]) -> None:
    assert tokenizer().convert_tokens_to_ids(case["token"], published=True) == case["id"]


def test_sizes_and_roles() -> None:
    meta = RECORDED["meta"]
    assert tokenizer().vocab_size == meta["num_text_tokens"]
    assert len(tokenizer()) == meta["num_tokens"] == meta["len_tokenizer"]
    assert len(tokenizer(True)) == meta["num_tokens_with_eop"]
    for add_eop, name in ((False, "command_tokens"), (True, "command_tokens_with_eop")):
        for token in meta[name]:
            assert getattr(tokenizer(add_eop), f"{token['name']}_token_id") == token["id"]
    for token in meta["type_tokens"]:
        assert tokenizer().convert_ids_to_tokens(token["id"], published=True) == token["token"]


def test_padded_vocabulary() -> None:
    for name, size in RECORDED["meta"]["padded_vocab"].items():
        ranks = int(name.rpartition("mp")[2]) if name[-1].isdigit() else 1
        assert tokenizer("with_eop" in name).padded_vocab_size(ranks) == size
