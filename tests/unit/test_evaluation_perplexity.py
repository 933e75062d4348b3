"""Perplexity on a tiny model against sums by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hanmo.errors import HanmoError
from hanmo.evaluation.perplexity import bootstrap, evaluate
from hanmo.evaluation.scoring import score_rows
from hanmo.families.base import OpenedModel
from hanmo.records import Dialogue, PromptResponse

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
