"""The cleaning step that asks a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hanmo.checkpoints import save_model
from hanmo.data.cleaning import clean as clean_module
from hanmo.data.cleaning.clean import clean
from hanmo.data.cleaning.model import ModelScore
from hanmo.data.cleaning.recipe import build
from hanmo.errors import ConfigError, UnsupportedError
from hanmo.families.base import collate
from hanmo.families.heads import attach_value_head
from hanmo.records import Dialogue, read_records, write_records
from tests.unit.tiny import NAMES, tiny

TALK = [
    ("今天天气怎么样", "今天天气真不错"),
    ("明天去哪里玩", "明天我们去吃火锅"),
    ("三加五等于几", "三加五等于八", "谢谢你", "再见"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_mean_over_the_replies_tokens(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path / "made")
    save_model(opened, tmp_path / "model")
    found = ModelScore(tmp_path / "model", least=0.0, batch_size=2).scores(TALK)
    for turns, score in zip(TALK, found, strict=True):
        logprobs = []
        for parts in opened.family.parts(Dialogue(turns), 512):  # row by row, nothing padded
            batch = collate([opened.family.row(parts)], opened.family.padding)
            with torch.no_grad():
                logprob_BA = opened.network(**batch).logprob
            logprobs += logprob_BA[batch["labels"] != -100].tolist()
        assert score == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)


def test_a_reward_model_gives_its_reward(tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path / "made")
    attach_value_head(opened.network, "linear")
    torch.nn.init.normal_(next(opened.network.value_head.parameters()))
    save_model(opened, tmp_path / "model")
    found = ModelScore(tmp_path / "model", least=0.0).scores(TALK)
    for turns, score in zip(TALK, found, strict=True):
        row = opened.family.row(opened.family.parts(Dialogue(turns), 512)[0], closed=True)
        with torch.no_grad():
            output = opened.network(**collate([row], opened.family.padding))
        assert score == pytest.approx(output.value[0, row.end].item(), abs=1e-4)
    assert len(set(found)) == len(found)


def test_what_is_below_goes_and_texts_are_judged_too(tmp_path: Path) -> None:
    save_model(tiny("glm", tmp_path / "made"), tmp_path / "model")
    texts = [("今天天气真不错",), ("火锅怎么样",)]
    worse, better = sorted(ModelScore(tmp_path / "model", least=0.0).scores(texts))
    step = ModelScore(tmp_path / "model", least=(worse + better) / 2)
    assert sorted(map(str, step.faults(texts))) == ["None", f"model score {worse:.2f}"]


def test_what_a_dialogue_model_cannot_judge(tmp_path: Path) -> None:
    save_model(tiny("eva", tmp_path), tmp_path / "model")
    long = ("今天天气真不错" * 100,) * 2
    assert ModelScore(tmp_path / "model", least=0.0, limit=8).faults([long]) == [None]  # nothing of it fits
    with pytest.raises(UnsupportedError, match="dialogues"):
        ModelScore(tmp_path / "model", least=0.0).scores([("今天天气真不错",)])


def test_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers write what one does, and a model that has changed is asked anew after an interruption."""
    monkeypatch.setattr(clean_module, "BLOCK", 20)
    save_model(tiny("pangu", tmp_path / "made"), tmp_path / "model")
    talk = [(f"{first}，{number}", second) for number in range(20) for first, second, *_ in TALK]
    scores = sorted(ModelScore(tmp_path / "model", least=0.0).scores(talk))
    write_records(tmp_path / "in.jsonl", [Dialogue(turns) for turns in talk])
    settings = {"model": str(tmp_path / "model"), "least": (scores[19] + scores[20]) / 2}
    written = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}.jsonl"
        recipe = build([{"length": {"longest": 100}}, {"model_score": settings}], "x")
        cleaned = clean(recipe, [tmp_path / "in.jsonl"], out, workers=workers)
        assert cleaned is not None and cleaned.steps["model_score"].removed == 20
        written.append(out.read_bytes())
        assert len(list(read_records(out))) == len(talk) - 20
    assert written[0] == written[1]
    assert tmp_path / "model" / "config.json" in recipe.files()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_score: .*model"):
        build([{"model_score": {"least": 0.5}}], "x")
    with pytest.raises(ConfigError, match="batch_size=0"):
        build([{"model_score": {"model": "m", "least": 0.5, "batch_size": 0}}], "x")
