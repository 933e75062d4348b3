"""Tasks of the user's own: what a file may say, what records must hold, and that it is CLUE's engine that runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hanmo.checkpoints
from hanmo.cli import app
from hanmo.errors import ConfigError, HanmoError, RecordError
from hanmo.evaluation.results.result import QuestionResult
from hanmo.evaluation.suites.clue.suite import clue_suite
from hanmo.evaluation.suites.clue.tasks import all_tasks
from hanmo.evaluation.suites.custom import custom_suite, read_split, read_task
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Options
from hanmo.families.base import OpenedModel
from tests.unit.clue_files import clue_folder, write_lines
from tests.unit.exam_files import one_token_a_character

LABELS = 'data: x.jsonl\nanswer: label\nlabels: {1: 好, 0: 坏}\ntemplate: "{text}是{option}"\n'


def written(folder: Path, content: str, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def quiet(what: str) -> Any:
    return lambda done, total: None


def test_labels(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, LABELS))
    assert (task.name, task.title, task.reading, task.fields) == ("own", "own", "prior", ("text",))
    write_lines(tmp_path / "x.jsonl", [{"text": "甲", "label": 0}, {"text": 2.5, "label": "1", "more": None}])
    first, second = read_split(task, "dev")
    assert (first.options, first.gold, second.gold) == (("好", "坏"), 1, 0) and second.fields == {"text": "2.5"}
    assert (first.where, second.where) == (f"{tmp_path / 'x.jsonl'}:1", f"{tmp_path / 'x.jsonl'}:2")
    assert task.template.fill(second.fields, second.options[second.gold]) == "2.5是好"


@pytest.mark.parametrize("labels", ['{1: 好, "1": 坏, 0: 中}', "{0: 好, 1: 好}"])
def test_labels_that_nothing_tells_apart(labels: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own\.yaml: labels: two are the same"):
        read_task(written(tmp_path, LABELS.replace("{1: 好, 0: 坏}", labels)))


def test_a_place_in_doubled_braces_is_text(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, LABELS.replace("{text}是", "{{option}}{{{text}}}{{")))
    assert task.template.around({"text": "甲"}) == ("{option}{甲}{", "")


def test_the_right_text_is_right_at_either_of_its_places() -> None:
    item = QuestionResult(
        "x:1", "三____", ("三", "二", "三"), 2, {"sum": [-1.0, -2.0, -1.0], "mean": [-3.0, -2.0, -3.0]}
    )
    assert (item.choice("sum"), item.value("sum"), item.value("mean")) == (0, 1.0, 0.0)
    assert (item.margin("sum"), item.margin("mean")) == (-1.0, 1.0)


@pytest.mark.parametrize(("answer", "gold"), [("b", 1), ("丙", 2), ("甲", 0)])
def test_options_in_fields_of_a_table(answer: str, gold: int, tmp_path: Path) -> None:
    """An answer is the name of a field or the text in it; cells are text; records begin where they begin."""
    said = 'data: x.csv\nanswer: right\noptions: [a, b, c]\ntemplate: "{q}\\n{option}。"\ntitle: 题\n'
    task = read_task(written(tmp_path, said))
    written(tmp_path, f'q,a,b,c,right\n"一\n二",甲,None,丙,{answer}\n三,1,2,3,3\n', "x.csv")
    first, second = read_split(task, "dev")
    assert (task.title, task.reading, first.options, first.gold) == ("题", "mean", ("甲", "None", "丙"), gold)
    assert second.where == f"{tmp_path / 'x.csv'}:4" and second.gold == 2


@pytest.mark.parametrize(("answer", "gold"), [(1, 1), ("甲", 0)])
def test_a_list_of_options(answer: object, gold: int, tmp_path: Path) -> None:
    task = read_task(written(tmp_path, 'data: x.json\nanswer: right\noptions: choices\ntemplate: "{q}{option}"\n'))
    (tmp_path / "x.json").write_text(json.dumps([{"q": "问", "choices": ["甲", "乙"], "right": answer}]))
    (example,) = read_split(task, "dev")
    assert (example.options, example.gold) == (("甲", "乙"), gold)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("labels", "lables"), r"own.yaml: unknown setting 'lables': did you mean labels\?"),
        (("answer: label\n", ""), "answer: not given"),
        (("labels: {1: 好, 0: 坏}\n", ""), "give either labels .* or options"),
        (("1: 好, ", ""), "one candidate alone"),
        (("{option}", "{options}"), r"the template has {option} 0 times"),
        (("{text}", "{text} {option}"), r"the template has {option} 2 times"),
        (("{text}", "{text"), "template: .*a brace that is text is written twice"),
        (("{text}", "{text.x}"), r"expected only names of fields in braces, as {text}; found 'text.x'"),
        (("answer", "shorten: {body: end}\nanswer"), "shorten names 'body', which is not in the template; it has text"),
        (("answer", "shorten: {text: middle}\nanswer"), "own.yaml: shorten.text='middle': expected start or end"),
        (("answer", "reading: f1\nanswer"), "own.yaml: reading='f1': expected"),
    ],
)
def test_a_file_that_cannot_be(change: tuple[str, str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_task(written(tmp_path, LABELS.replace(*change)))


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"label": 1}, r"x.jsonl:2: field 'text' is missing; the record has label; expected text or a number"),
        ({"text": ["甲"], "label": 1}, r"x.jsonl:2: field 'text' is list"),
        ({"text": "甲", "label": 2}, r"x.jsonl:2: label is '2'; expected one of 1, 0"),
        ({"text": "甲", "label": None}, r"x.jsonl:2: field 'label' is NoneType"),
        (["甲"], r"x.jsonl:2: expected a JSON object, found list"),
    ],
)
def test_bad_records(record: Any, problem: str, tmp_path: Path) -> None:
    task = read_task(written(tmp_path, LABELS))
    with pytest.raises(RecordError, match=r"x.jsonl: no such file"):
        read_split(task, "dev")
    write_lines(tmp_path / "x.jsonl", [{"text": "甲", "label": 0}, record])
    with pytest.raises(RecordError, match=problem):
        read_split(task, "dev", first=1)  # all are checked
    write_lines(tmp_path / "x.jsonl", [])
    with pytest.raises(HanmoError, match="no records"):
        read_split(task, "dev")


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"q": "问", "c": ["甲", "乙"], "right": 2}, "right is 2; expected an index from 0 to 1"),
        ({"q": "问", "c": ["甲"], "right": 0}, r"field 'c' is \['甲'\]; expected a list of at least two texts"),
        ({"q": "问", "c": ["甲", "乙"], "right": "丙"}, "right is '丙'; expected one of 甲, 乙"),
    ],
)
def test_bad_lists(record: Any, problem: str, tmp_path: Path) -> None:
    task = read_task(written(tmp_path, 'data: x.jsonl\nanswer: right\noptions: c\ntemplate: "{q}{option}"\n'))
    write_lines(tmp_path / "x.jsonl", [record])
    with pytest.raises(RecordError, match=f"x.jsonl:1: {problem}"):
        read_split(task, "dev")


@pytest.mark.parametrize("shots", [0, 2])
def test_a_task_of_clue_as_ones_own(eva: OpenedModel, shots: int, tmp_path: Path) -> None:
    """TNEWS written as a user would: the same questions, the same scores."""
    data, tnews = clue_folder(tmp_path / "clue"), all_tasks()["tnews"]
    content = {
        "data": "clue/tnews/dev.json",
        "train": "clue/tnews/train.json",
        "answer": "label",
        "labels": tnews.labels,
    }
    content |= {"template": tnews.template.text, "shorten": tnews.shorten}
    task = read_task(written(tmp_path, json.dumps(content, ensure_ascii=False)))
    options = Options(shots=shots, limit=256)
    own = evaluate(eva, custom_suite([task]), options, tmp_path / "one", quiet).tasks[0]
    ours = evaluate(eva, clue_suite(data, ["tnews"]), options, tmp_path / "two", quiet).tasks[0]
    assert own.right == ours.right and own.reading == ours.reading and own.chance == ours.chance
    assert [item.scores for item in own.items] == [item.scores for item in ours.items]


def test_what_does_not_go_together(eva: OpenedModel, tmp_path: Path) -> None:
    task = read_task(written(tmp_path, LABELS))
    write_lines(tmp_path / "x.jsonl", [{"text": "甲", "label": 0}])
    with pytest.raises(ConfigError, match="own: given twice"):
        custom_suite([task, task])
    with pytest.raises(ConfigError, match=r"own.yaml: examples in the prompt need records; say where with train: FILE"):
        evaluate(eva, custom_suite([task]), Options(shots=1), tmp_path, quiet)
    gap = read_task(written(tmp_path, LABELS.replace("{option}", "{option}的"), "gap.yaml"))
    with pytest.raises(ConfigError, match="--chat: gap goes on after the candidate"):
        evaluate(one_token_a_character(["甲"], chat=True), custom_suite([gap]), Options(chat=True), tmp_path, quiet)


def test_command_line(eva: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanmo.checkpoints, "open_model", lambda *args, **kwargs: eva)
    write_lines(tmp_path / "x.jsonl", [{"text": "你好", "label": 0}, {"text": "谢谢", "label": 1}])
    files = [str(written(tmp_path, LABELS + f"title: 任务{name}\n", f"{name}.yaml")) for name in "ba"]
    shown = CliRunner().invoke(app, ["eval", "task", "x", *files, "--output", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert shown.output.index("任务b") < shown.output.index("任务a") and "accuracy (prior)" in shown.output
    shown = CliRunner().invoke(app, ["eval", "compare", str(tmp_path / "out"), str(tmp_path / "out"), "--json"])
    assert list(json.loads(shown.output)["tasks"]) == ["b", "a"]
