"""The cleaning step that asks a model: scores by hand, batches, reward models, workers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hanmo.checkpoints import save_model
from hanmo.cli import app, main
from hanmo.data.prepare.cleaning import clean as clean_module
from hanmo.data.prepare.cleaning.recipe import build
from hanmo.data.prepare.cleaning.scorer import ModelRelevance
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.nn.row_model import attach_value_head
from hanmo.records import Dialogue, PromptResponse, write_records
from hanmo.rows import Part, collate
from hanmo.training.rl.rewards import score_records
from tests.unit.tiny import NAMES, tiny


@pytest.mark.parametrize("name", NAMES)
def test_model_relevance_is_what_the_turn_before_gives(name: str, tmp_path: Path) -> None:
    """The same number one by one and in batches, and by hand from the rows of both."""
    opened = tiny(name, tmp_path / "vocab")
    save_model(opened, tmp_path / "model")
    pairs = [
        PromptResponse("你好吗", "我很好"),
        PromptResponse("今天天气怎么样?", "天气真不错"),
        PromptResponse("再见", "谢谢你"),
    ]
    found = ModelRelevance(str(tmp_path / "model"), batch_size=2).scores(pairs)
    assert found == pytest.approx(ModelRelevance(str(tmp_path / "model"), batch_size=1).scores(pairs), abs=1e-5)
    for pair, score in zip(pairs, found, strict=True):
        records = (pair, PromptResponse("", pair.response))
        after, alone = (_reply_logprobs(opened, opened.family.parts(record, 256)[0]) for record in records)
        assert score == pytest.approx((after[-len(alone) :] - alone).mean().item(), abs=1e-5)
        assert abs(score or 0.0) > 1e-4  # the turn before counts


def _reply_logprobs(opened: OpenedModel, parts: list[Part]) -> torch.Tensor:
    row = opened.family.row(parts)
    with torch.no_grad():
        logprob_A = opened.network(**collate([row], opened.family.padding)).logprob[0]
    return logprob_A[row.labels >= 0]


def test_model_relevance_takes_a_reward_models_values(tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path / "vocab")
    attach_value_head(opened.network, "linear")
    torch.nn.init.normal_(opened.network.value_head.output.weight)
    save_model(opened, tmp_path / "model")
    pairs = [PromptResponse("你好吗", "我很好"), PromptResponse("今天天气怎么样", "天气真不错")]
    expected = score_records(opened, pairs, 256)
    step = ModelRelevance(str(tmp_path / "model"))
    assert step.scores(pairs) == pytest.approx(expected, abs=1e-5)
    low, high = sorted(pairs, key=lambda pair: expected[pairs.index(pair)] or 0.0)
    step.least = sum(filter(None, expected)) / 2
    assert step.faults([[low.prompt, low.response], [high.prompt, high.response], ["一句"]]) == [
        f"model relevance {min(filter(None, expected)):.3f}",
        None,
        None,
    ]


@pytest.mark.slow
def test_model_relevance_by_option_with_one_and_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clean_module, "BLOCK", 20)
    save_model(tiny("pangu", tmp_path / "vocab"), tmp_path / "model")
    turns = ["你好吗", "我很好", "今天天气怎么样", "天气真不错", "明天去哪里玩", "去吃火锅", "谢谢你", "再见"]
    pairs = [Dialogue((first, second)) for first in turns for second in turns if first != second]
    write_records(tmp_path / "in.jsonl", pairs)
    (tmp_path / "none.yaml").write_text("- length", encoding="utf-8")
    written = []
    for workers in ("1", "2"):
        out, rejects = tmp_path / f"out{workers}.jsonl", tmp_path / f"rejects{workers}.jsonl"
        command = ["data", "clean", str(tmp_path / "in.jsonl"), "-o", str(out), "--rejects", str(rejects)]
        command += ["--recipe", str(tmp_path / "none.yaml"), "--scorer", str(tmp_path / "model"), "--workers", workers]
        monkeypatch.setattr(sys, "argv", ["hanmo", *command, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        step = json.loads(capsys.readouterr().out)["steps"][-1]
        assert step["step"] == "model_relevance" and 0 < step["removed"] < len(pairs) and len(step["examples"]) == 3
        written.append(out.read_bytes() + rejects.read_bytes())
    assert written[0] == written[1]


def test_a_run_knows_the_models_files(tmp_path: Path) -> None:
    """A model that has changed is asked anew after an interruption: the states of its files are part of the job."""
    save_model(tiny("pangu", tmp_path / "vocab"), tmp_path / "model")
    recipe = build([{"model_relevance": {"model": str(tmp_path / "model")}}, "length"], "x")
    assert {"config.json", "model.safetensors"} <= {path.name for path in recipe.files()}


def test_a_threshold_without_a_scorer(tmp_path: Path) -> None:
    write_records(tmp_path / "in.jsonl", [Dialogue(("你好吗", "我很好"))])
    done = CliRunner().invoke(
        app, ["data", "clean", str(tmp_path / "in.jsonl"), "-o", "out.jsonl", "--scorer-least", "1"]
    )
    assert isinstance(done.exception, ConfigError) and "--scorer-least needs --scorer" in str(done.exception)
