"""The dialogue evaluation on a tiny model: its two readings, what it writes, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hanmo import metrics
from hanmo.errors import HanmoError, UnsupportedError
from hanmo.evaluation import dialogue
from hanmo.evaluation.dialogue import Sample, corrected_reading, evaluate, published_reading, title
from hanmo.families.base import OpenedModel
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse, Record, Text
from tests.unit.tiny import tiny_eva

GREEDY = Settings(max_new_tokens=6, do_sample=False, min_new_tokens=1)
RECORDS = [
    Dialogue(("你好吗", "我很好"), where="test.txt:1"),
    Dialogue(("今天天气真不错", "明天去哪里玩", "火锅怎么样"), where="test.txt:2"),
    PromptResponse("谢谢", "再见", where="test.txt:3"),
    Dialogue(("明天去哪里玩", "不去"), where="test.txt:4"),
    Dialogue(("再见", "再见"), where="test.txt:5"),
]


def sample(response: str, generation: str, nll: float = 1.0, tokens: int = 1) -> Sample:
    return Sample(("问",), "问", response, generation, "f:1", nll, tokens)


def test_corrected_losses_by_hand() -> None:
    reading = corrected_reading([sample("天", "天", nll=2.0, tokens=1), sample("地地", "人", nll=4.0, tokens=4)])
    assert reading["loss"] == pytest.approx(1.5)  # (2 / 1 + 4 / 4) / 2
    assert reading["token-loss"] == pytest.approx(1.2)  # 6 / 5
    assert reading["perplexity"] == pytest.approx(math.exp(1.2))
    assert reading["f1"] == reading["rouge-1"] == pytest.approx(50)


def test_published_reading_differs_where_the_original_is_off() -> None:
    samples = [sample("天地", "天地天地"), sample("人", "人")]
    published, notes = published_reading(samples, strict=True)
    corrected = corrected_reading(samples)
    assert not notes
    assert published["dist-2"] == pytest.approx(100) and corrected["dist-2"] == pytest.approx(100 * 2 / 3)
    # 天地 and 地人 (across the samples) are both among 天地天地人's pairs.
    assert published["rouge-2"] == pytest.approx(100) and corrected["rouge-2"] == pytest.approx(100 * (0.5 + 1) / 2)
    assert published["bleu-4"] == corrected["bleu-4"]


def test_an_empty_reference() -> None:
    samples = [sample("天", "天"), sample("", "地")]
    reading, notes = published_reading(samples, strict=False)
    assert "f1" not in reading and "rouge-l" not in reading and "bleu-4" in reading
    assert "f:1" in notes[0] and "empty" in notes[0]
    with pytest.raises(UnsupportedError, match=r"f:1: the reference is empty"):
        published_reading(samples, strict=True)
    assert corrected_reading(samples)["f1"] == pytest.approx(50)


def test_the_last_incomplete_batch_is_left_out_of_the_published_reading_only(eva: OpenedModel) -> None:
    result = evaluate(eva, RECORDS, GREEDY, batch_size=2)
    first = result.samples[:4]
    assert result.published["loss"] == pytest.approx(sum(one.nll / one.tokens for one in first) / 4)
    assert result.corrected["loss"] == pytest.approx(sum(one.nll / one.tokens for one in result.samples) / 5)
    assert (
        result.published["bleu-1"]
        == 100 * metrics.bleu([one.generation for one in first], [[one.response] for one in first])[0]
    )
    assert evaluate(eva, RECORDS, GREEDY, batch_size=8).published == {}
    assert "no full batch" in evaluate(eva, RECORDS, GREEDY, batch_size=8).notes[0]


@pytest.mark.parametrize("beams", [1, 2])
def test_the_batch_size_changes_nothing_else(eva: OpenedModel, beams: int) -> None:
    settings = GREEDY.change(num_beams=beams)
    one, many = (evaluate(eva, RECORDS, settings, batch_size=size) for size in (1, 4))
    assert [sample.generation for sample in one.samples] == [sample.generation for sample in many.samples]
    assert any(sample.generation for sample in one.samples)
    # 1e-5 per token is relative in the perplexity, the exponential of their mean.
    assert one.corrected == pytest.approx(many.corrected, abs=1e-5, rel=1e-5)


def test_samples_are_in_the_order_of_the_records(eva: OpenedModel) -> None:
    result = evaluate(eva, RECORDS, GREEDY, batch_size=2)
    assert [one.where for one in result.samples] == [record.where for record in RECORDS]
    assert [one.response for one in result.samples] == ["我很好", "火锅怎么样", "再见", "不去", "再见"]
    assert result.samples[1].turns == ("今天天气真不错", "明天去哪里玩")
    assert result.samples[1].context == "今天天气真不错<sep>明天去哪里玩<sep><s_0>"
    assert result.samples[2].turns == ("谢谢",)


def test_the_published_protocol_shows_the_rules_the_padded_row(
    eva: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, ...]]] = []
    monkeypatch.setattr(
        type(eva.family),
        "logits_processor",
        lambda self, settings, contexts: seen.append([tuple(ids) for ids in contexts]),
    )
    evaluate(eva, RECORDS[2:3], GREEDY, limit=9, published=True)
    evaluate(eva, RECORDS[2:3], GREEDY, limit=9)
    words = eva.tokenizer.encode("谢谢", add_special_tokens=False)
    sep, start, pad = eva.tokenizer.sep_token_id, eva.tokenizer.bos_token_id, eva.tokenizer.pad_token_id
    row = (*words, sep, start)
    assert seen == [[(*row, *[pad] * (9 - len(row)))], [(*words, sep)]]


def test_a_drawn_reply_depends_on_seed_and_line_alone(eva: OpenedModel) -> None:
    """Not on the batch, on lengths, or on which other records there are (as when bad ones are passed over)."""
    asked = ("你好吗", "明天去哪里玩我不好", "你好吗", "你好吗", "今天", "你好吗")
    records = [Dialogue((said, "我很好"), where=f"test.txt:{line}") for line, said in enumerate(asked, 1)]
    settings = Settings(max_new_tokens=6, seed=3)

    def said(records: list[Record], settings: Settings, batch_size: int) -> list[str]:
        return [one.generation for one in evaluate(eva, records, settings, batch_size=batch_size).samples]

    first = said(records, settings, 1)
    assert len({first[0], *first[2:4], first[5]}) == 4  # one prompt, four places
    assert said(records, settings, 4) == said(records, settings, 6) == first
    assert said([records[0], *records[3:]], settings, 4) == [first[0], *first[3:]]
    assert said(records, settings.change(seed=4), 4) != first


@pytest.mark.parametrize("settings", [GREEDY, Settings(max_new_tokens=6, seed=3)], ids=["greedy", "sampled"])
def test_a_stopped_run_goes_on(
    eva: OpenedModel, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after two batches of replies, in the middle of a line; the rest is asked, and all is as without the stop."""
    whole = evaluate(eva, RECORDS, settings, batch_size=2)
    decode, asked = dialogue.generate, []

    def stops(opened: Any, contexts: Any, *given: Any, **named: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(contexts))
        return decode(opened, contexts, *given, **named)

    monkeypatch.setattr(dialogue, "generate", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(eva, RECORDS, settings, batch_size=2, cache=tmp_path)
    (replies,) = tmp_path.glob("dialogue-replies-*.jsonl")
    lines = replies.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 4
    replies.write_text("".join(lines[:3]) + lines[3][:4], encoding="utf-8")
    asked.clear()
    assert evaluate(eva, RECORDS, settings, batch_size=2, cache=tmp_path) == whole
    assert asked == [2, 1]  # the batch that lost a line, and the last


def test_another_configuration_is_another_question(eva: OpenedModel, tmp_path: Path) -> None:
    evaluate(eva, RECORDS, GREEDY, cache=tmp_path)
    files = set(tmp_path.iterdir())
    evaluate(eva, RECORDS, GREEDY, cache=tmp_path)
    assert set(tmp_path.iterdir()) == files
    other = tiny_eva()
    other.family.config.layer_norm_epsilon = 0.1
    evaluate(other, RECORDS, GREEDY, cache=tmp_path)
    assert len(set(tmp_path.iterdir())) == 2 * len(files)


def test_what_is_written(eva: OpenedModel, tmp_path: Path) -> None:
    result = evaluate(eva, RECORDS, GREEDY, batch_size=2)
    result.write(tmp_path)
    lines = (tmp_path / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["generation"] for line in lines] == [one.generation for one in result.samples]
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert written["corrected"] == result.corrected and written["published"] == result.published
    assert written["about"]["settings"]["max_new_tokens"] == 6
    assert written["about"]["protocol"] == "corrected"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "BLEU-4" in page and "今天天气真不错" in page


def test_what_is_refused(eva: OpenedModel) -> None:
    with pytest.raises(UnsupportedError, match=r"t:9: running text"):
        evaluate(eva, [Text("你好", "t:9")], GREEDY)
    with pytest.raises(HanmoError, match=r"none of the 5 records .* at most 2 context"):
        evaluate(eva, RECORDS, GREEDY, limit=2)


@pytest.mark.parametrize(
    "metric, text", [("bleu-4", "BLEU-4"), ("rouge-l", "ROUGE-L"), ("f1", "F1"), ("rouge-1-recall", "ROUGE-1-recall")]
)
def test_titles(metric: str, text: str) -> None:
    assert title(metric) == text
