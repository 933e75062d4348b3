"""Perplexity on a tiny model against sums by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hanmo.errors import HanmoError
from hanmo.evaluation.engine.row_scores import score_rows
from hanmo.evaluation.perplexity import bootstrap, evaluate
from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt
from hanmo.records import Dialogue, PromptResponse, Record, Text
from hanmo.rows import IGNORE
from tests.unit.exam_files import one_token_a_character
from tests.unit.tiny import NAMES, tiny

RECORDS = [
    PromptResponse("你好吗", "我很好", where="a:1"),
    Dialogue(("今天天气真不错", "明天去哪里玩"), where="a:2"),
    PromptResponse("谢谢", "再见", where="a:3"),
]


def test_sums_and_units_by_hand(eva: OpenedModel) -> None:
    result = evaluate(eva, RECORDS)
    rows = [eva.family.row(parts) for record in RECORDS for parts in eva.family.parts(record, 512)]
    scores = [score_rows(eva, [row])[0] for row in rows]
    nll, tokens = sum(score.nll for score in scores), sum(score.tokens for score in scores)
    assert result.nll == pytest.approx(nll, abs=1e-4)
    assert result.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert (result.characters, result.bytes) == (11, 33)  # 我很好 明天去哪里玩 再见
    assert result.bits_per_character == pytest.approx(nll / math.log(2) / 11, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(result.bits_per_character / 3)
    assert [record.where for record in result.records] == ["a:1", "a:2", "a:3"]
    assert result.interval[0] <= result.perplexity <= result.interval[1]


def test_only_the_response_is_scored(eva: OpenedModel) -> None:
    (one,) = evaluate(eva, RECORDS[:1]).records
    words = eva.tokenizer.encode("我很好", add_special_tokens=False)
    assert one.tokens == len(words) + 1  # the stop token


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_batch_size_changes_no_score(eva: OpenedModel, batch_size: int) -> None:
    one, other = evaluate(eva, RECORDS, batch_size=1), evaluate(eva, RECORDS, batch_size=batch_size)
    for here, there in zip(one.records, other.records, strict=True):
        assert here.nll == pytest.approx(there.nll, abs=1e-5 * here.tokens)


def test_records_that_do_not_fit_are_counted(eva: OpenedModel) -> None:
    longest = max(record.tokens for record in evaluate(eva, RECORDS).records)
    result = evaluate(eva, RECORDS, response_limit=longest - 1)
    assert result.left_out == 1
    assert [record.where for record in result.records] == ["a:1", "a:3"]
    with pytest.raises(HanmoError, match="none of the 3 records"):
        evaluate(eva, RECORDS, limit=2)


def test_a_cut_text_counts_only_what_was_scored(eva: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that cuts a long response: the units are those of what is left."""
    whole = type(eva.family).parts

    def cutting(self, record, limit, response_limit=None):
        rows = whole(self, record, 512)
        return [[given, type(given)(said.ids[: (response_limit or limit) - 1], True)] for given, said in rows]

    monkeypatch.setattr(type(eva.family), "parts", cutting)
    (one,) = evaluate(eva, RECORDS[1:2], response_limit=3).records
    words = eva.tokenizer.encode("明天去哪里玩", add_special_tokens=False)
    assert one.cut and one.tokens == 3 < len(words)
    assert one.characters == len(eva.family.decode(words[:2])) < 6


def test_what_is_written(eva: OpenedModel, tmp_path: Path) -> None:
    result = evaluate(eva, RECORDS)
    result.write(tmp_path)
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert written["perplexity"] == result.perplexity and written["about"]["model"] == "a tiny EVA"
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(line)["nll"] for line in lines) == pytest.approx(result.nll)


def test_bootstrap_interval() -> None:
    # Records that all have the same mean leave no doubt.
    assert bootstrap([2.0, 4.0], [1, 2]) == pytest.approx((math.exp(2), math.exp(2)))
    # Half of 200 records at 1 and half at 2: the mean is 1.5 with a standard error of 0.5 / sqrt(200).
    low, high = bootstrap([1.0, 2.0] * 100, [1] * 200)
    error = 1.96 * 0.5 / math.sqrt(200)
    assert math.log(low) == pytest.approx(1.5 - error, abs=0.012)
    assert math.log(high) == pytest.approx(1.5 + error, abs=0.012)
    assert bootstrap([1.0, 2.0], [1, 1]) == bootstrap([1.0, 2.0], [1, 1])


def in_bits(opened: OpenedModel, record: Record, characters: int) -> float:
    """Bits per character by plain arithmetic over the rows' own logits, the stop token included."""
    nats = 0.0
    for parts in opened.family.parts(record, 512):
        row = opened.family.row(parts)
        inputs = {name: value.unsqueeze(0) for name, value in row.inputs.items()}
        with torch.inference_mode():
            logits = opened.network(**inputs).logits[0].double()
        scored = row.labels != IGNORE
        nats -= logits.log_softmax(-1)[scored].gather(1, row.labels[scored][:, None]).sum().item()
    return nats / math.log(2) / characters


def pieces(opened: OpenedModel, text: str) -> list[str]:
    ids = opened.tokenizer.encode(text, add_special_tokens=False)
    return [str(piece) for piece in opened.tokenizer.convert_ids_to_tokens(ids)]


@pytest.mark.parametrize("name", NAMES)
def test_a_character_counts_if_its_token_is_scored(name: str, tmp_path: Path) -> None:
    """The first token of a text is predicted from nothing where the family has no start token."""
    opened = tiny(name, tmp_path)
    text = "今天天气真不错。"
    said = [PromptResponse("你好吗", text), Dialogue(("你好", "谢谢", text))]
    for record in said if name == "eva" else [*said, Text(text)]:
        characters = len(text)
        if isinstance(record, Text) and name in ("transformer_xl", "huggingface"):
            first = pieces(opened, text)[0].replace("▁", "")
            assert text.startswith(first)
            characters -= len(first)
        (one,) = evaluate(opened, [record]).records
        assert (one.characters, one.bytes, one.cut) == (characters, 3 * characters, False), record
        assert evaluate(opened, [record]).bits_per_character == pytest.approx(in_bits(opened, record, characters))


@pytest.mark.parametrize(("start", "characters"), [(True, 4), (False, 3)])
def test_texts_with_and_without_a_start_token(start: bool, characters: int) -> None:
    opened = one_token_a_character("你好再见")
    if start:
        opened.tokenizer.backend_tokenizer.post_processor = TemplateProcessing("</s> $A", None, [("</s>", 1)])
    (one,) = evaluate(opened, [Text("你好再见")]).records
    assert (one.characters, one.tokens) == (characters, characters + 1)
    (reply,) = evaluate(opened, [PromptResponse("你好", "再见")]).records
    assert (reply.characters, reply.tokens) == (2, 3)


@pytest.mark.parametrize(
    ("text", "characters"),
    [("𠮷你好", 2), (" 你好", 1), ("Ａ你好", 2), ("你", 0), ("𠮷", 0)],
    ids=["unknown", "white space", "another width", "a single token", "a single unknown one"],
)
def test_a_first_token_that_does_not_read_as_the_text(text: str, characters: int) -> None:
    """What it stands for is what the tokenizer makes it of, whatever it reads."""
    opened = one_token_a_character("你好")
    backend = opened.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    (one,) = evaluate(opened, [Text(text)]).records
    assert one.characters == characters and one.bytes == 3 * characters


def test_a_character_whose_first_byte_alone_is_not_scored_counts() -> None:
    """Tokens of bytes: the character ends in a token that is scored."""
    alphabet = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 3)}
    backend = Tokenizer(BPE({"<pad>": 0, "</s>": 1, "<unk>": 2, **alphabet}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, eos_token_id=1)
    opened = OpenedModel(adopt(GPT2LMHeadModel(config).eval()), HuggingfaceFamily(config, tokenizer), "bytes")
    for text, characters in (("你好", 2), ("a你", 1), ("你", 1)):
        (one,) = evaluate(opened, [Text(text)]).records
        assert (one.characters, one.tokens) == (characters, len(text.encode())), text


def test_a_long_text_in_several_rows_loses_one_token_only(tmp_path: Path) -> None:
    opened = tiny("transformer_xl", tmp_path)
    text = "今天天气真不错。" * 6
    (one,) = evaluate(opened, [Text(text)], limit=8).records
    assert not one.cut and one.characters == len(text) - len(pieces(opened, text)[0].replace("▁", ""))
    assert one.tokens == len(pieces(opened, text))  # less the first, and the stop token


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_tokenised_twice_to_learn_whether_it_was_cut(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tiny(name, tmp_path)
    records: list[Record] = [PromptResponse("你好吗", "我很好" * 20), Dialogue(("今天天气", "明天去哪里玩"))]
    records += [] if name == "eva" else [Text("今天天气真不错。" * 20)]
    whole = evaluate(opened, records, limit=512)
    asked: list[str] = []
    encode = opened.tokenizer.encode

    def counted(text: str, *rest: Any, **settings: Any) -> list[int]:
        asked.append(text)
        return encode(text, *rest, **settings)

    monkeypatch.setattr(opened.tokenizer, "encode", counted)
    for limit in (512, 40):
        result = evaluate(opened, records, limit=limit)
        long = [text for text in asked if len(text) > 1]  # huggingface asks with 一 what stands around a text
        assert long and len(long) == len(set(long))
        asked.clear()
    assert any(record.cut for record in result.records) == (name != "eva")  # which leaves out what does not fit
    assert not any(record.cut for record in whole.records)
