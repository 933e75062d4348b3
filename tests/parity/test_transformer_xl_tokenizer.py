"""文汇's tokenizer against the recorded cases."""

from functools import cache
from typing import Any

import pytest

from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer
from tests.parity.transformer_xl_tokens import padded_vocab_size, published_id, published_text, published_token
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
    assert tokenizer().decode(case["ids"]) == published_text(tokenizer(), case["ids"]) == case["decoded"]
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
            published_text(tokenizer(add_eop), case["ids"])
    else:
        assert published_text(tokenizer(add_eop), case["ids"]) == case["text"]


@pytest.mark.parametrize(
    ("add_eop", "case"),
    [
        *((False, case) for case in RECORDED.get("id_to_token", [])),
        *((True, case) for case in RECORDED.get("id_to_token_with_eop", [])),
    ],
)
def test_published_id_to_token(add_eop: bool, case: dict[str, Any]) -> None:
    assert published_token(tokenizer(add_eop), case["id"]) == case["token"]


@pytest.mark.parametrize("case", RECORDED.get("token_to_id", []))
def test_published_token_to_id(case: dict[str, Any]) -> None:
    assert published_id(tokenizer(), case["token"]) == case["id"]


def test_sizes_and_roles() -> None:
    meta = RECORDED["meta"]
    assert tokenizer().vocab_size == meta["num_text_tokens"]
    assert len(tokenizer()) == meta["num_tokens"] == meta["len_tokenizer"]
    assert len(tokenizer(True)) == meta["num_tokens_with_eop"]
    for add_eop, name in ((False, "command_tokens"), (True, "command_tokens_with_eop")):
        for token in meta[name]:
            ids = {"eos": tokenizer(add_eop).eos_token_id, "pad": tokenizer(add_eop).pad_token_id}
            ids["eop"] = tokenizer(add_eop).convert_tokens_to_ids("<|endofpiece|>")
            assert ids[token["name"]] == token["id"]
    for token in meta["type_tokens"]:
        assert published_token(tokenizer(), token["id"]) == token["token"]


def test_padded_vocabulary() -> None:
    for name, size in RECORDED["meta"]["padded_vocab"].items():
        ranks = int(name.rpartition("mp")[2]) if name[-1].isdigit() else 1
        assert padded_vocab_size(tokenizer("with_eop" in name), ranks) == size
