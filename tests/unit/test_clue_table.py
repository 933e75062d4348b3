"""Runs side by side: the order of the published table, intervals, and what does not belong together."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hanmo.cli import app
from hanmo.errors import HanmoError
from hanmo.evaluation.results.result import read_result
from hanmo.evaluation.results.table import Table


def run(model: str, shots: int = 0, protocol: str = "corrected", tasks: str = "tnews ocnli", **about: Any) -> Any:
    def task(name: str) -> dict[str, Any]:
        place = ["ocnli", "tnews"].index(name)
        more = {"low": 0.25, "high": 0.75, "about": {"data": "d1"}}
        return {
            "title": name.upper(),
            "metric": "accuracy",
            "reading": "prior",
            "chance": 0.25,
            "value": 0.5,
            "place": place,
            "groups": [],
            "right": [0.0, 1.0],
            **more,
        }

    common = {"model": model, "shots": shots, "protocol": protocol, "weights": f"w-{model}", "limit": 512}
    return {
        "format": "hanmo-tasks-1",
        "title": "CLUE",
        "averages": [],
        "about": {**common, "hanmo": "9", "commit": "c0", **about},
        "tasks": {name: task(name) for name in tasks.split()},
    }


def test_zero_shot_comes_first_and_tasks_stand_in_the_published_order() -> None:
    made = Table([run("B", shots=5), run("A", tasks="tnews"), run("B")])
    assert made.header == ["task", "metric", "chance", "zero-shot: A", "zero-shot: B", "5-shot: B", "data"]
    value = "0.5000 (0.2500 – 0.7500)"
    assert made.rows == [
        ["OCNLI", "accuracy (prior)", 0.25, None, value, value, "d1"],
        ["TNEWS", "accuracy (prior)", 0.25, value, value, value, "d1"],
    ]
    text = made.markdown()
    assert f"| OCNLI | accuracy (prior) | 0.2500 | – | {value} | {value} | d1 |" in text
    assert "- 5-shot: B: corrected protocol; at most 512 tokens; weights w-B; hanmo 9 of commit c0\n" in text


def test_columns_say_in_what_runs_differ() -> None:
    made = Table([run("A"), run("A", protocol="published"), run("A", weights="0123456789")])
    assert made.header[3:-1] == [
        "zero-shot, corrected: A w-A",
        "zero-shot, published: A w-A",
        "zero-shot, corrected: A 01234567",
    ]


def test_what_does_not_belong_together_is_refused() -> None:
    other = run("B")
    other["tasks"]["tnews"]["about"]["data"] = "d2"
    with pytest.raises(HanmoError, match=r"tnews: zero-shot: B answered other questions \(data d2\)"):
        Table([run("A"), other])
    with pytest.raises(HanmoError, match="zero-shot: A: given twice"):
        Table([run("A"), run("A")])


def test_command_line(tmp_path: Path) -> None:
    files = []
    for model in "AB":
        (tmp_path / model).mkdir()
        (tmp_path / model / "results.json").write_text(json.dumps(run(model)))
        files.append(str(tmp_path / model))
    shown = CliRunner().invoke(app, ["eval", "table", *files])
    assert shown.exit_code == 0 and "| task | metric | chance | zero-shot: A | zero-shot: B | data |" in shown.stdout
    for name, expected in (("t.html", ">0.5000 (0.2500 – 0.7500)</td>"), ("t.md", "| OCNLI |")):
        CliRunner().invoke(app, ["eval", "table", *files, "--output", str(tmp_path / name)])
        assert expected in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["about"], []),
        (["about", "shots"], "0"),
        (["about", "weights"], 3),
        (["title"], None),
        (["tasks"], [1]),
        (["tasks", "tnews"], None),
        (["tasks", "tnews", "place"], "1"),
        (["tasks", "tnews", "about"], {}),
        (["tasks", "tnews", "right"], []),
        (["tasks", "tnews", "right", 0], 7),
        (["tasks", "tnews", "value"], float("nan")),
        (["averages"], [{}]),
    ],
    ids=str,
)
def test_a_result_that_was_changed_is_one_message_with_the_place(tmp_path: Path, path: list[Any], value: Any) -> None:
    content = run("A")
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert read_result(tmp_path) == content
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(
        HanmoError, match=rf"results\.json: {'.'.join(map(str, path))}.*: .*as hanmo wrote it$"
    ) as found:
        read_result(tmp_path)
    assert "\n" not in str(found.value)


def test_averages_of_other_groups_are_left_out() -> None:
    one, other = run("A"), run("B")
    row = {"title": "all", "over": "tasks", "chance": 0.25, "value": 0.5, "low": 0.25, "high": 0.75}
    one["averages"], other["averages"] = [row, {**row, "over": "questions"}], [row]
    assert len(Table([one, other]).rows) == 2
    other["averages"] = one["averages"]
    assert len(Table([one, other]).rows) == 4
