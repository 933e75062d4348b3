"""EVA's tokenizer against the recorded cases: ids, tokens, decoded text, special ids."""

from functools import cache
from typing import Any

import pytest

from hanmo.families.eva.tokenization import EvaTokenizer
from tests.places import PARITY, load, needs_data, needs_parity

pytestmark = needs_parity("eva")
FOLDER = PARITY / "eva"
SETS = [load(path) for path in sorted((FOLDER / "tokenizer").glob("*.json"))]
CASES = [(one["vocab"], case) for one in SETS if "cases" in one for case in one["cases"]]
DECODED = [(one["vocab"], case) for one in SETS if "cases" in one for case in one.get("decode_only", [])]
SPECIAL = [(vocab, ids) for one in SETS if "cases" not in one for vocab, ids in one.items()]


@cache
def tokenizer(vocab: str) -> EvaTokenizer:
    return EvaTokenizer(str(FOLDER / vocab))


@pytest.mark.parametrize(("vocab", "case"), CASES)
def test_text_to_ids_and_back(vocab: str, case: dict[str, Any]) -> None:
    ours = tokenizer(vocab)
    assert ours.encode_plain(case["text"]) == case["ids"]
    assert ours.encode(case["text"], add_special_tokens=False) == case["ids"]
    assert ours(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
    assert ours.encode(case["text"]) == [*case["ids"], ours.sep_token_id]
    assert ours.tokenize(case["text"]) == case["tokens"]
    assert ours.decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize(("vocab", "case"), DECODED)
def test_ids_to_text_and_tokens(vocab: str, case: dict[str, Any]) -> None:
    assert tokenizer(vocab).decode(case["ids"]) == case["decoded"]
    assert tokenizer(vocab).convert_ids_to_tokens(case["ids"]) == case["tokens"]


@pytest.mark.parametrize(("vocab", "ids"), SPECIAL)
def test_special_ids(vocab: str, ids: dict[str, int]) -> None:
    ours = tokenizer(vocab)
    assert {
        "size": ours.vocab_size,
        "sep": ours.sep_token_id,
        "pad": ours.pad_token_id,
        "eod": ours.convert_tokens_to_ids("<eod>"),
        "unk": ours.unk_token_id,
        "s_0": ours.convert_tokens_to_ids("<s_0>"),
        "num_sentinels": sum(f"<s_{number}>" in ours.get_vocab() for number in range(187)),
        "empty": ours.convert_tokens_to_ids(""),
        "space": ours.convert_tokens_to_ids(" "),
        "newline": ours.convert_tokens_to_ids("\n"),
    } == ids
    assert ours.bos_token_id == ids["s_0"]


@pytest.mark.parametrize("vocab", sorted({vocab for vocab, _ in CASES}))
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_is_its_texts(vocab: str, workers: int) -> None:
    cases = [case for name, case in CASES if name == vocab]
    assert tokenizer(vocab).encode_batch([case["text"] for case in cases], workers) == [case["ids"] for case in cases]


def test_there_are_cases() -> None:
    assert CASES and DECODED and SPECIAL


@needs_data
@pytest.mark.slow
def test_a_megabyte_of_real_text_as_the_straightforward_way() -> None:
    from benchmarks.common import real_texts
    from benchmarks.tokenizers import eva_straightforward

    texts = real_texts(1_000_000)
    straightforward = eva_straightforward(FOLDER / "vocab.txt")
    encoded = tokenizer("vocab.txt").encode_batch(texts)
    assert [text for text, ids in zip(texts, encoded, strict=True) if ids != straightforward(text)] == []
    short = [text for text in texts if len(text) < 200]
    assert [text for text in short if tokenizer("vocab.txt").encode_plain(text) != straightforward(text)] == []
