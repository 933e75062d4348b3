"""The corrected protocol: room, examples, readings, runs that go on, results."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hanmo.checkpoints
from hanmo.cli import app
from hanmo.errors import ConfigError, HanmoError
from hanmo.evaluation.engine import candidates
from hanmo.evaluation.results.page import write_result
from hanmo.evaluation.results.provenance import software, weights_hash
from hanmo.evaluation.results.result import QuestionResult, Result, compare_results, read_result
from hanmo.evaluation.suites import prompting
from hanmo.evaluation.suites.clue.suite import clue_suite
from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split
from hanmo.evaluation.suites.prompting import FewShotPrefix
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Options, data_hash
from hanmo.families.base import OpenedModel
from tests.unit.clue_files import clue_folder
from tests.unit.tiny import tiny_eva

TASKS = all_tasks()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return clue_folder(tmp_path / "clue")


def run(data: Path, names: list[str], cache: Path, **options: Any) -> Result:
    return evaluate(
        tiny_eva(), clue_suite(data, names), Options(**options), cache, lambda what: lambda done, total: None
    )


def length(parts: Any) -> int:
    return sum(len(part.ids) for part in parts)


def test_only_the_text_is_cut(eva: OpenedModel, data: Path) -> None:
    (example, *_) = read_split(TASKS["csl"], data, "dev")
    example = replace(example, fields={**example.fields, "abst": "天气" * 300})
    for limit in (100, 200):
        fields = prompting.shortened(eva.family, TASKS["csl"], example, FewShotPrefix(), limit)
        assert 0 < len(fields["abst"]) < 600 and fields["keywords"] == example.fields["keywords"]
        parts = eva.family.cloze(*corrected_around(example, fields))[0]
        assert limit - 12 <= length(parts) + 2 <= limit
    with pytest.raises(HanmoError, match=r"dev.json:1: the question has \d+ tokens even without"):
        prompting.shortened(eva.family, TASKS["csl"], example, FewShotPrefix(), 10)


def corrected_around(example: Any, fields: dict[str, str]) -> tuple[str, list[str]]:
    return TASKS["csl"].template.around(fields)[0], list(example.options)


def test_examples_are_balanced_fixed_and_short_enough(eva: OpenedModel, data: Path) -> None:
    train = read_split(TASKS["afqmc"], data, "train")
    shots = prompting.draw_shots(eva.family, TASKS["afqmc"], train, 4, 1000, seed=1)
    assert Counter(shot.gold for shot in shots) == {0: 2, 1: 2}
    assert prompting.draw_shots(eva.family, TASKS["afqmc"], train, 4, 1000, seed=1) == shots
    assert len({shot.where for shot in shots}) == 4
    lead = prompting.prefix_of(TASKS["afqmc"], shots).text()
    assert all(shot.fields["sentence1"] in lead and shot.options[shot.gold] in lead for shot in shots)
    csl = [replace(one, fields={**one.fields, "abst": "天气" * 400}) for one in read_split(TASKS["csl"], data, "train")]
    (shot,) = prompting.draw_shots(eva.family, TASKS["csl"], csl, 1, 200, seed=0)
    assert len(eva.tokenizer.encode(prompting.prefix_of(TASKS["csl"], [shot]).text(), add_special_tokens=False)) <= 100


def test_fewer_options_keep_the_right_one(data: Path) -> None:
    examples = read_split(TASKS["iflytek"], data, "dev")
    fewer = list(prompting.fewer_options(examples, 4, seed=0))
    assert all(len(set(one.options)) == 4 and one.options[one.gold] == "电台" for one in fewer)
    assert len({one.options for one in fewer}) > 1
    assert list(prompting.fewer_options(examples, 4, seed=0)) == fewer


def test_readings_by_hand() -> None:
    readings = prompting.read_scores([-4.0, -3.0], [4, 1], [-5.0, -1.0])
    assert readings == {"sum": [-4.0, -3.0], "mean": [-1.0, -3.0], "prior": [1.0, -2.0]}
    assert prompting.first_line("\n 很好 \n再见") == "很好"


def test_the_prior_asks_without_the_records_text(eva: OpenedModel, data: Path) -> None:
    examples = read_split(TASKS["tnews"], data, "dev")
    plan = prompting.prepare_questions(eva.family, TASKS["tnews"], examples, [[FewShotPrefix()]] * len(examples), 200)
    assert len(plan.priors) == 1 and plan.prior_of == [0] * len(examples)
    before = TASKS["tnews"].template.around({"sentence": ""})[0]
    assert plan.priors[0] == eva.family.cloze(before, examples[0].options)
    chid = prompting.prepare_questions(
        eva.family,
        TASKS["chid"],
        blanks := read_split(TASKS["chid"], data, "dev"),
        [[FewShotPrefix()]] * len(blanks),
        200,
    )
    assert len(chid.priors) == 3  # what follows the gap is theirs


@pytest.mark.parametrize("chat", [False, True])
def test_the_prior_has_the_examples_of_its_question(chat: bool, eva: OpenedModel, data: Path) -> None:
    """All that differs from the question is the record's text; fewer examples make another prior."""
    task, examples = TASKS["tnews"], read_split(TASKS["tnews"], data, "dev")
    shots = prompting.draw_shots(eva.family, task, read_split(task, data, "train"), 2, 400, seed=0)
    front = prompting.prefix_of(task, shots, chat)
    plan = prompting.prepare_questions(eva.family, task, examples, [front.shorter()] * len(examples), 400)
    assert plan.shots == [2] * len(examples)
    before = task.template.around({"sentence": ""})[0]
    (prior,) = plan.priors
    assert len(front.shots) == 2 and prior == front.candidates(eva.family, before, examples[0].options)
    if not chat:
        solved = "".join(asked + answered + prompting.SEPARATOR for asked, answered in front.shots)
        lead = task.instruction + prompting.SEPARATOR if task.instruction else ""
        assert prior == eva.family.cloze(lead + solved + before, examples[0].options)
    bare = prompting.prepare_questions(eva.family, task, examples, [front.shorter()[2:]] * len(examples), 400)
    assert bare.shots == [0] * len(examples) and bare.priors[0] != prior


@pytest.mark.parametrize("shots", [0, 2])
def test_all_tasks_and_the_files_of_a_result(data: Path, tmp_path: Path, shots: int) -> None:
    result = run(data, [], tmp_path / "cache", shots=shots)
    assert [task.name for task in result.tasks] == list(TASKS)
    for task in result.tasks:
        expected = {"f1", "em"} if task.name == "cmrc2018" else {"sum", "mean", "prior"}
        assert set(task.right) == expected
        assert (task.chance is None) == (task.name == "cmrc2018")
        assert len(task.about["shots"]) == min(shots, len(read_split(TASKS[task.name], data, "train")))
        for item in task.items:
            if task.chance is not None:
                alone = task.right[task.reading][task.items.index(item)]
                assert alone == float(item.choice(task.reading) == item.gold)
    assert result.tasks[5].chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    write_result(result, tmp_path / "out")
    content = read_result(tmp_path / "out")
    assert set(content["about"]) >= {"protocol", "shots", "weights", "hanmo", "limit", "model"}
    assert content["tasks"]["tnews"]["about"]["data"]
    lines = (tmp_path / "out/items.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == sum(len(task.items) for task in result.tasks)
    assert len(json.loads(lines[-1])["scores"]["prior"]) == 15
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "TNEWS" in page and "corrected protocol" in page and "chance" in page
    assert "| TNEWS | accuracy (prior)" in (tmp_path / "out/results.md").read_text(encoding="utf-8")


def test_an_interrupted_run_goes_on_and_a_finished_one_asks_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, ["tnews"], tmp_path / "one").as_dict()
    score, calls = candidates._score, [0]

    def dying(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(candidates, "_score", dying)
    with pytest.raises(KeyboardInterrupt):
        run(data, ["tnews"], tmp_path / "two", budget=1)
    (kept,) = (tmp_path / "two").iterdir()
    assert kept.read_text().count("\n") == 2
    with kept.open("a") as file:
        file.write("[2, [[")  # killed in the middle of a line
    again = run(data, ["tnews"], tmp_path / "two", budget=1)
    assert calls[0] == 3 + 2  # four questions in all: three and the prior
    assert again.as_dict()["tasks"]["tnews"]["right"] == whole["tasks"]["tnews"]["right"]
    run(data, ["tnews"], tmp_path / "two")
    assert calls[0] == 5
    run(data, ["tnews"], tmp_path / "two", shots=1)
    assert calls[0] > 5  # another question


def test_settings_that_do_not_go_together(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only the published protocol"):
        clue_suite(data).protocol(Options(candidates=tmp_path))
    with pytest.raises(ConfigError, match="--choices is for the corrected"):
        clue_suite(data).protocol(Options(published=True, choices=4))
    with pytest.raises(HanmoError, match="encoder-decoder"):
        run(data, ["afqmc"], tmp_path, published=True)


def test_comparison_of_two_results(data: Path, tmp_path: Path) -> None:
    one = run(data, ["afqmc", "c3"], tmp_path / "cache").as_dict()
    other = json.loads(json.dumps(one))
    other["tasks"]["afqmc"]["right"] = [1.0 - value for value in one["tasks"]["afqmc"]["right"]]
    found = compare_results(one, other)
    assert found["c3"].difference == 0 and found["c3"].p == 1
    right = one["tasks"]["afqmc"]["right"]
    assert (found["afqmc"].worse, found["afqmc"].better) == (sum(right), len(right) - sum(right))
    other["tasks"]["c3"]["about"]["data"] = "else"
    with pytest.raises(HanmoError, match="c3: not the same questions"):
        compare_results(one, other)
    with pytest.raises(HanmoError, match="no task in common"):
        compare_results(one, {"title": "CLUE", "tasks": {}})


def test_margin_and_choice() -> None:
    item = QuestionResult("f:1", "", ("a", "b", "c"), 1, {"sum": [-1.0, -3.0, -1.0]})
    assert item.choice("sum") == 0 and item.margin("sum") == 2.0


def test_command_line(eva: OpenedModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanmo.checkpoints, "open_model", lambda *args, **kwargs: eva)
    runner = CliRunner()
    for name in ("one", "two"):
        arguments = [
            "eval",
            "clue",
            "x",
            "--data",
            str(data),
            "--tasks",
            "afqmc,cmrc2018",
            "--output",
            str(tmp_path / name),
        ]
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "AFQMC" in result.output and "corrected protocol, 0 shots" in result.output
    result = runner.invoke(app, ["eval", "compare", str(tmp_path / "one"), str(tmp_path / "two/results.json")])
    assert result.exit_code == 0 and "+0.0000" in result.output
    result = runner.invoke(app, ["eval", "compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json"])
    assert json.loads(result.output)["tasks"]["afqmc"]["p"] == 1.0
    with pytest.raises(HanmoError, match=r"expected the results.json"):
        read_result(tmp_path / "none")


def test_every_result_says_where_it_comes_from(eva: OpenedModel, data: Path, tmp_path: Path) -> None:
    """Protocol, shots, limit, weights, data, task, version and commit, in each of the files for people and machines."""
    result = run(data, ["tnews"], tmp_path / "cache", shots=1)
    write_result(result, tmp_path)
    about, task = result.as_dict()["about"], result.as_dict()["tasks"]["tnews"]["about"]
    assert (about["protocol"], about["shots"], len(task["shots"])) == ("corrected", 1, 1)
    origins = {"weights": weights_hash(eva.network), "data": data_hash(read_split(TASKS["tnews"], data, "dev"))}
    origins |= {"task": TASKS["tnews"].hash(), **software()}
    for name, value in origins.items():
        assert {**about, **task}[name] == value
        for file in ("results.json", "results.md", "report.html"):
            assert value in (tmp_path / file).read_text(encoding="utf-8"), (name, file)
