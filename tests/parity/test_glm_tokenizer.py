"""GLM's tokenizers (the port, and the original in both variants) against the recorded cases."""

from functools import cache
from typing import Any

import pytest
import torch

from hanmo.families.glm.tokenization import GlmTokenizer
from tests.parity.glm_inputs import MASKS, build_inputs_for_generation, build_inputs_for_multiple_choice
from tests.places import PARITY, VOCAB, load, needs_parity

pytestmark = needs_parity("glm")
RECORDED = load(PARITY / "glm" / "tokenizer_cases.json", {})
VARIANTS = load(PARITY / "glm" / "megatron" / "tokenizer_cases.json", {}).get("variants", {})
COMMANDS = {"sop": "<|startofpiece|>", "eop": "<|endofpiece|>", "smask": "[sMASK]", "gmask": "[gMASK]"}
ORIGINAL = [(name, case) for name, variant in VARIANTS.items() for case in variant["cases"]]


@cache
def port() -> GlmTokenizer:
    return GlmTokenizer(str(VOCAB / "cog-pretrain.model"))


@cache
def original(variant: str) -> GlmTokenizer:
    fixed = not variant.startswith("no ")
    return GlmTokenizer(str(VOCAB / "cog-pretrain.model"), flavour="original", fix_command_token=fixed)


def lists(encoded: Any) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in encoded.items()}


def encoded(case: dict[str, Any]) -> Any:
    inputs = port()(case["texts"], return_tensors="pt", **case["tokenizer_kwargs"])
    assert inputs["input_ids"].tolist() == case["tokenizer_input_ids"]
    assert inputs["attention_mask"].tolist() == case["tokenizer_attention_mask"]
    return inputs


@pytest.mark.parametrize("case", RECORDED.get("cases", []))
def test_text_to_ids_and_back(case: dict[str, Any]) -> None:
    assert port().tokenize(case["text"]) == case["tokens"]
    assert port().encode_plain(case["text"]) == case["ids"]
    assert port().encode(case["text"], add_special_tokens=False) == case["ids"]
    assert port().encode_batch([case["text"], ""]) == [case["ids"], []]
    assert port().encode(case["text"]) == case["ids_with_special"]
    assert port().decode(case["ids"]) == case["decoded"]
    assert port().decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]


@pytest.mark.parametrize("case", RECORDED.get("pair_cases", []))
def test_pairs_truncation_and_padding(case: dict[str, Any]) -> None:
    inputs = port()(case["text"], case["text_pair"], **case["kwargs"])
    assert dict(inputs) == {name: case[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("case", RECORDED.get("decode_cases", []))
def test_ids_to_tokens_and_text(case: dict[str, Any]) -> None:
    assert port().convert_ids_to_tokens(case["ids"]) == case["tokens"]
    assert port().decode(case["ids"]) == case["decoded"]
    assert port().decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]


def test_roles() -> None:
    assert (len(port()), port().vocab_size) == (RECORDED["len"], RECORDED["vocab_size"])
    assert {token: port().convert_tokens_to_ids(token) for token in RECORDED["added_tokens"]} == RECORDED[
        "added_tokens"
    ]
    ids = {role: getattr(port(), f"{role}_token_id") for role in RECORDED["roles"] if role not in COMMANDS}
    ids |= {role: port().convert_tokens_to_ids(token) for role, token in COMMANDS.items()}
    assert ids == RECORDED["roles"]
    assert port().convert_tokens_to_ids(MASKS) == RECORDED["mask_token_ids"]
    assert port().all_special_tokens == RECORDED["all_special_tokens"]
    assert port().all_special_ids == RECORDED["all_special_ids"]
    assert (port().padding_side, port().truncation_side) == (RECORDED["padding_side"], RECORDED["truncation_side"])


@pytest.mark.parametrize("case", [*RECORDED.get("generation_inputs", []), *RECORDED.get("training_inputs", [])])
def test_inputs_for_generation(case: dict[str, Any]) -> None:
    inputs = build_inputs_for_generation(port(), encoded(case), targets=case.get("targets"), **case["kwargs"])
    assert lists(inputs) == case["outputs"]


@pytest.mark.parametrize("case", RECORDED.get("multiple_choice_inputs", []))
def test_inputs_for_multiple_choice(case: dict[str, Any]) -> None:
    inputs = build_inputs_for_multiple_choice(port(), encoded(case), case["choices"])
    assert lists(inputs) == case["outputs"]


@pytest.mark.parametrize("case", RECORDED.get("sft_samples", []))
def test_sft_sample(case: dict[str, Any]) -> None:
    """Too long: one token at a time from the longer side (the label on ties); else the label side is filled up."""
    question = (case["prompt"], case["prefix"] + "[MASK]")
    prompt, label = len(port().encode(*question)), len(port().encode_plain(case["label"]))
    if prompt + label + 1 <= case["max_length"]:
        label = case["max_length"] - prompt - 1
    while prompt + label + 1 > case["max_length"]:
        prompt, label = (prompt - 1, label) if prompt > label else (prompt, label - 1)
    assert (prompt, label + 1) == (case["prompt_length"], case["label_length"])
    inputs = port()(*question, max_length=prompt, truncation="only_first", return_tensors="pt")
    rows = lists(build_inputs_for_generation(port(), inputs, label + 1, case["label"], padding=True))
    assert {name: row[0] for name, row in rows.items()} == {name: case[name] for name in rows}


def test_errors() -> None:
    without = RECORDED["errors"]["build_inputs_for_generation without a mask token"]
    with pytest.raises(ValueError, match=without[1]):
        build_inputs_for_generation(port(), port()(["没有空"], return_tensors="pt"))
    other = RECORDED["errors"]["build_inputs_for_multiple_choice with [gMASK] only"]
    with pytest.raises(ValueError, match=other[1]):
        build_inputs_for_multiple_choice(port(), port()(["空[gMASK]"], return_tensors="pt"), [["一"]])


@pytest.mark.parametrize(("variant", "case"), ORIGINAL)
def test_original_text_to_ids_and_back(variant: str, case: dict[str, Any]) -> None:
    assert original(variant).encode_plain(case["text"]) == case["ids"]
    assert original(variant).decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_original_command_tokens(variant: str) -> None:
    assert len(original(variant)) == VARIANTS[variant]["num_tokens"]
    for token, index, _ in VARIANTS[variant]["command_tokens"].values():
        assert original(variant).convert_tokens_to_ids(token) == index
