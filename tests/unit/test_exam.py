"""Examinations: files, letters, room, conversations, averages, what is handed in, the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hanmo.checkpoints
from hanmo.cli import app
from hanmo.errors import ConfigError, HanmoError, RecordError, UnsupportedError
from hanmo.evaluation.engine import candidates
from hanmo.evaluation.results.page import write_result
from hanmo.evaluation.results.result import Result, compare_results
from hanmo.evaluation.results.statistics import interval_of_means
from hanmo.evaluation.suites import prompting
from hanmo.evaluation.suites.exam import suite as published
from hanmo.evaluation.suites.exam.suite import LETTERS, all_exams, exam_suite, read_rows, read_subject
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Options
from tests.unit.exam_files import exam_folder, one_token_a_character
from tests.unit.tiny import tiny_eva

CEVAL, CMMLU, MMLU = (all_exams()[name] for name in ("ceval", "cmmlu", "mmlu"))
HEADERS = {"ceval": "id,question,A,B,C,D,answer", "cmmlu": ",Question,A,B,C,D,Answer", "mmlu": ""}
TEXTS = [
    text
    for exam in (CEVAL, CMMLU)
    for task in exam.subjects.values()
    for text in (task.instruction, task.template.text)
]
MODEL, CHATTING = one_token_a_character([*TEXTS, "一"]), one_token_a_character([*TEXTS, "一"], chat=True)


def two_subjects(name: str) -> list[str]:
    """Of different domains."""
    subjects = list(all_exams()[name].subjects.values())
    return [subjects[0].name, next(one.name for one in subjects if one.groups[0] != subjects[0].groups[0])]


def folder(name: str, place: Path, answered: bool = True) -> Path:
    return exam_folder(all_exams()[name], place / name, HEADERS[name], two_subjects(name), answered)


def sit(name: str, data: Path, cache: Path, opened: Any = MODEL, **options: Any) -> Result:
    suite = exam_suite(name, data, two_subjects(name))
    return evaluate(opened, suite, Options(**options), cache, lambda what: lambda done, total: None)


def test_as_many_subjects_as_published() -> None:
    assert [len(exam.subjects) for exam in (CEVAL, CMMLU, MMLU)] == [52, 67, 57]
    assert sum("Hard" in task.groups for task in CEVAL.subjects.values()) == 8
    assert {task.groups[0] for task in CMMLU.subjects.values()} == {"STEM", "Humanities", "Social Science", "Other"}
    with pytest.raises(ConfigError, match="did you mean mmlu"):
        exam_suite("mmlu-x", ".")
    with pytest.raises(ConfigError, match="unknown subject of C-Eval 'laws': did you mean law"):
        exam_suite("ceval", "", ["laws"])


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("packed", [False, True])
def test_cells_are_text_and_rows_have_their_lines(name: str, packed: bool, tmp_path: Path) -> None:
    import gzip

    exam, data = all_exams()[name], folder(name, tmp_path)
    task = exam.subjects[two_subjects(name)[0]]
    if packed:
        path = data / exam.files.format(split=exam.splits[0], subject=task.name)
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    examples = read_subject(exam, task, data, exam.splits[0])
    assert [example.fields["A"] + example.fields["B"] + example.fields["C"] for example in examples] == ["NoneN/A1"] * 3
    assert [example.label for example in examples] == ["A", "B", "C"] and [one.gold for one in examples] == [0, 1, 2]
    assert [example.where.rpartition(":")[2] for example in examples] == [
        str(n + bool(HEADERS[name])) for n in (1, 2, 3)
    ]
    assert [example.fields["id"] for example in examples] == ["0", "1", "2"]
    assert len(read_subject(exam, task, data, exam.splits[0], first=2)) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("q,1,2,3,4,E\n", r":1: the answer is 'E'; expected one of A, B, C, D"),
        ('"a\nb",1,2,3,4,A\nq,1,2,3,A\n', r":3: 5 values; expected 6: question, A, B, C, D, answer"),
        ("q,1,2,3,4,A\nq,1,2,3,4,\n", r":2: some questions have answers and some have none"),
        ("", r"no question in it"),
        (f'q,1,2,3,4,A\n"{"a" * 140_000},1,2,3,4,A\n', r":2: not CSV: field larger than field limit"),
    ],
)
def test_bad_files(content: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "test/anatomy_test.csv"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(HanmoError, match=problem):
        read_subject(MMLU, MMLU.subjects["anatomy"], tmp_path, "test")
    with pytest.raises(HanmoError, match=r"virology_test.csv: no such file; expected MMLU as its authors publish it"):
        read_subject(MMLU, MMLU.subjects["virology"], tmp_path, "test")


@pytest.mark.parametrize("name", HEADERS)
def test_accuracy_by_subject_domain_and_in_all(name: str, tmp_path: Path) -> None:
    exam, data = all_exams()[name], folder(name, tmp_path)
    result = sit(name, data, tmp_path / "cache", shots=2)
    assert result.title == exam.title
    for task in result.tasks:
        assert set(task.right) == {"sum", "mean", "prior"} and task.reading == "sum" and task.chance == 0.25
        assert [where.rpartition("/")[2].partition(".")[0].startswith(task.name) for where in task.about["shots"]] == [
            True,
            True,
        ]
    *groups, over_tasks, over_questions = result.averages()
    assert over_tasks["value"] == over_questions["value"]  # as many questions in each
    assert over_tasks["value"] == pytest.approx(sum(task.value for task in result.tasks) / 2)
    assert {row["title"] for row in groups} == {group for task in result.tasks for group in task.groups}
    first = next(row for row in groups if row["title"] == result.tasks[0].groups[0])
    assert first["value"] == result.tasks[0].value and (first["tasks"], first["questions"]) == (1, 3)


def test_both_means_by_hand() -> None:
    """One subject of two questions, both right, and one of four, all wrong."""
    from hanmo.evaluation.results.result import TaskResult

    def subject(name: str, values: list[float]) -> TaskResult:
        return TaskResult(name, name, "accuracy", "sum", {"sum": values}, 0.25, True, [], {"data": ""}, [], ("G",))

    rows = Result("X", {}, [subject("a", [1.0, 1.0]), subject("b", [0.0] * 4)]).averages()
    assert [(row["title"], row["over"], row["value"]) for row in rows] == [
        ("G", "tasks", 0.5), ("G", "questions", 1 / 3), ("all", "tasks", 0.5), ("all", "questions", 1 / 3)
    ]  # fmt: skip
    assert (rows[0]["low"], rows[0]["high"]) == (0.5, 0.5) and rows[1]["low"] < 1 / 3 < rows[1]["high"]
    assert interval_of_means([[0.0, 1.0] * 50, [1.0] * 4]) == pytest.approx((0.7, 0.8), abs=0.01)


def test_the_last_examples_make_room(tmp_path: Path) -> None:
    data = folder("ceval", tmp_path)
    task = CEVAL.subjects[two_subjects("ceval")[0]]
    (example, *_), dev = (read_subject(CEVAL, task, data, split) for split in ("val", "dev"))
    fronts = prompting.prefix_of(task, dev).shorter()
    lengths = [sum(len(part.ids) for part in front.candidates(MODEL.family, task.template.around(example.fields)[0], ["A"])[0]) + 2
               for front in fronts]  # fmt: skip
    for kept, limit in ((5, lengths[0]), (4, lengths[0] - 1), (0, lengths[5])):
        plan = prompting.prepare_questions(MODEL.family, task, [example], [fronts], limit)
        assert plan.shots == [kept] and len(plan.questions[0][0][0].ids) + 3 == lengths[5 - kept]
    short = prompting.prepare_questions(MODEL.family, task, [example], [fronts], lengths[5] - 5).questions[0]
    text = MODEL.tokenizer.decode(short[0][0].ids)
    assert example.fields["question"] not in text and example.fields["question"][5:] in text
    notes = sit("ceval", data, tmp_path / "cache", shots=5, limit=lengths[0] - 1).tasks[0].notes
    assert notes == ["3 questions left no room for all examples"]


def test_a_conversation(tmp_path: Path) -> None:
    """Examples are turns, the instruction opens the first one, the letter is the model's turn."""
    data = folder("mmlu", tmp_path)
    task = MMLU.subjects[two_subjects("mmlu")[0]]
    (example, *_), (shot, *_) = (read_subject(MMLU, task, data, split) for split in ("test", "dev"))
    front = prompting.prefix_of(task, [shot], chat=True)
    question = front.candidates(CHATTING.family, task.template.around(example.fields)[0], LETTERS)
    solved, asked = (task.template.around(one.fields)[0].rstrip() for one in (shot, example))
    expected = f"<user>{task.instruction}\n\n{solved}</s><assistant>A</s><user>{asked}</s><assistant>"
    assert asked.endswith("Answer:")
    for letter, (context, answer) in zip(LETTERS, question, strict=True):
        assert CHATTING.tokenizer.decode(context.ids) == expected and not context.scored
        assert CHATTING.tokenizer.decode(answer.ids) == letter and answer.scored
    about = sit("mmlu", data, tmp_path / "cache", CHATTING, chat=True, shots=1).about
    assert about["chat"] is True
    with pytest.raises(ConfigError, match="characters has no chat template"):
        sit("mmlu", data, tmp_path / "cache", chat=True)


def test_what_is_handed_in(tmp_path: Path) -> None:
    """C-Eval's test split has no answers: by subject and id the letter, in both protocols; and the same as with answers."""
    data = folder("ceval", tmp_path, answered=False)
    for setup in ({}, {"published": True, "shots": 2}):
        result = sit("ceval", data, tmp_path / "cache", split="test", **setup)
        assert not result.tasks and list(result.submission) == two_subjects("ceval")
        for answers in result.submission.values():
            assert list(answers) == ["0", "1", "2"] and set(answers.values()) <= set(LETTERS)
        assert sum(map(len, result.submission.values())) == 6
        write_result(result, tmp_path / "out")
        assert json.loads((tmp_path / "out/submission.json").read_text()) == result.submission
        assert not (tmp_path / "out/results.json").exists()
        known = sit("ceval", folder("ceval", tmp_path / "known"), tmp_path / "cache", split="test", **setup)
        assert known.submission == result.submission and known.tasks


def test_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder("cmmlu", tmp_path)
    first = sit("cmmlu", data, tmp_path / "cache", shots=1).as_dict()
    monkeypatch.setattr(candidates, "_score", None)
    assert sit("cmmlu", data, tmp_path / "cache", shots=1).as_dict() == first
    with pytest.raises(TypeError):
        sit("cmmlu", data, tmp_path / "cache", shots=2)


def test_what_pandas_makes_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("q,None,1,1,01,A\nr,N/A,2,,2.50,B\n")
    rows = read_rows(path)
    assert [[row[letter] for letter in LETTERS] for row in rows] == [
        ["nan", "1", "1.0", "1.0"],
        ["nan", "2", "nan", "2.5"],
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"q,1,2,3,4,A\nr,1,2,3,4,5,6,B\n", "x.csv: not CSV: .*Expected 6 fields in line 2, saw 8"),
        (b"q,1,2\n", "x.csv:1: 3 values; expected 6: question, A, B, C, D, answer"),
        (b"", "x.csv: not CSV: No columns"),
        (b"q,1,2,3,4,A\n\xc4\xe3,1,2,3,4,A\n", "x.csv:2: not UTF-8"),
    ],
)
def test_what_pandas_refuses_is_one_message(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(HanmoError, match=problem):
        read_rows(path)


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    data = folder("cmmlu", tmp_path)
    with pytest.raises(ConfigError, match="the original has no CMMLU"):
        sit("cmmlu", data, tmp_path, published=True)
    with pytest.raises(ConfigError, match="leave --chat out"):
        sit("mmlu", folder("mmlu", tmp_path), tmp_path, published=True, chat=True)
    with pytest.raises(ConfigError, match="give it with --published"):
        exam_suite("ceval", data).protocol(Options(cot=True))
    with pytest.raises(ConfigError, match="unknown split of CMMLU 'val': known: test"):
        sit("cmmlu", data, tmp_path, split="val")
    with pytest.raises(RecordError, match=r"computer_network_dev.csv:1: no column 'explanation'"):
        sit("ceval", folder("ceval", tmp_path), tmp_path, published=True, cot=True, shots=1)
    with pytest.raises(UnsupportedError, match="how models/Qwen-7B was asked is not recorded"):
        published.form_of("models/Qwen-7B")
    with pytest.raises(ConfigError, match=r"--chat: .* has no chat template"):
        sit("cmmlu", data, tmp_path, tiny_eva(), chat=True)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exam, then compare and table on what it has written, averages included."""
    data = folder("ceval", tmp_path)
    subjects = ",".join(two_subjects("ceval"))
    runs = []
    for name, opened in (("one", MODEL), ("two", CHATTING)):
        monkeypatch.setattr(hanmo.checkpoints, "open_model", lambda *args, opened=opened, **kwargs: opened)
        options = ["--shots", "1", *(["--chat"] if name == "two" else []), "--output", str(tmp_path / name)]
        line = ["eval", "exam", "x", "--kind", "ceval", "--data", str(data), "--subjects", subjects, *options]
        shown = CliRunner().invoke(app, line)
        assert shown.exit_code == 0, shown.output
        assert "计算机网络" in shown.output and "mean over tasks" in shown.output and "1 shots" in shown.output
        runs.append(str(tmp_path / name))
    page = (tmp_path / "one/report.html").read_text(encoding="utf-8")
    assert "C-Eval" in page and "mean over questions" in page
    assert "| **all** | mean over tasks |" in (tmp_path / "one/results.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["eval", "compare", *runs, "--json"])
    found = json.loads(shown.output)["tasks"]
    domains = [CEVAL.subjects[subject].groups[0] for subject in two_subjects("ceval")]
    assert list(found) == [*two_subjects("ceval"), domains[0], "all", domains[1]]
    assert found["all"]["better"] == sum(found[subject]["better"] for subject in two_subjects("ceval"))
    for path, model in zip(runs, "ab", strict=True):
        content = json.loads((Path(path) / "results.json").read_text())
        content["about"]["model"] = model
        (Path(path) / "results.json").write_text(json.dumps(content))
    shown = CliRunner().invoke(app, ["eval", "table", *runs])
    assert "| all | mean over tasks | 0.2500 |" in shown.stdout and "# " not in shown.stdout
    other = json.loads((tmp_path / "one/results.json").read_text()) | {"title": "MMLU"}
    with pytest.raises(HanmoError, match="no task in common"):
        compare_results(other, json.loads((tmp_path / "two/results.json").read_text()))


def test_the_command_prints_what_is_handed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanmo.checkpoints, "open_model", lambda *args, **kwargs: MODEL)
    data = folder("ceval", tmp_path, answered=False)
    line = [
        "eval",
        "exam",
        "x",
        "--kind",
        "ceval",
        "--data",
        str(data),
        "--split",
        "test",
        "--output",
        str(tmp_path / "o"),
    ]
    line += ["--subjects", ",".join(two_subjects("ceval"))]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0 and "computer_network: 3 answers" in shown.output
    shown = CliRunner().invoke(app, [*line, "--json"])
    assert json.loads(shown.stdout)["submission"] == json.loads((tmp_path / "o/submission.json").read_text())
