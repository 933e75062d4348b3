"""Metrics of two files of texts, through the command."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hanmo.cli import app
from hanmo.errors import HanmoError, RecordError
from hanmo.evaluation.text_overlap import measure, read_pairs


def test_values_by_hand() -> None:
    found = measure(["今天很好"], [["今天好"]])
    assert found["f1"] == pytest.approx(2 * 3 / 7) and found["bleu-1"] == pytest.approx(3 / 4)
    assert found["rouge-2"] == pytest.approx(2 * 1 / (3 + 2))
    words = measure(["我爱北京"], [["我爱上海"]], words=True)  # 我 爱 北京, 我 爱 上海
    assert words["rouge-1"] == pytest.approx(2 / 3) and words["tokens"] == "words"
    assert measure(["今天"], [["明天", "今天"]])["f1"] == 1.0


def test_files_and_the_command(tmp_path: Path) -> None:
    said, expected = tmp_path / "said.txt", tmp_path / "expected.txt"
    said.write_text("今天\n明天很好\n", encoding="utf-8")
    expected.write_text("今天\t昨天\n明天很好\n", encoding="utf-8")
    assert read_pairs(said, expected) == (["今天", "明天很好"], [["今天", "昨天"], ["明天很好"]])
    runner = CliRunner()
    result = runner.invoke(app, ["eval", "rouge", str(said), str(expected), "--json"])
    assert json.loads(result.output)["rouge-l"] == pytest.approx(1.0)
    assert "ROUGE-L        | 1.0000" in runner.invoke(app, ["eval", "rouge", str(said), str(expected)]).output
    expected.write_text("今天\n\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"expected.txt:2: no reference"):
        read_pairs(said, expected)
    expected.write_text("今天\n", encoding="utf-8")
    with pytest.raises(HanmoError, match="has 2 lines"):
        read_pairs(said, expected)
    with pytest.raises(HanmoError, match="no such file"):
        read_pairs(said, tmp_path / "none")
