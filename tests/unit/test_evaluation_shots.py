"""No question is shown its own answer among the solved examples in front of it, whatever the suite."""

from pathlib import Path
from typing import Any

import pytest

from hanmo.evaluation.results.result import TaskResult
from hanmo.evaluation.suites import prompting
from hanmo.evaluation.suites.clue.suite import clue_suite
from hanmo.evaluation.suites.custom import custom_suite, read_task
from hanmo.evaluation.suites.exam.suite import all_exams, exam_suite
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Options
from tests.unit.clue_files import write_lines
from tests.unit.exam_files import one_token_a_character

TEXTS = ["很好吃", "不好吃", "太甜了", "还可以", "很新鲜", "等太久"]
MODEL = one_token_a_character("".join(TEXTS) + "是对错：。，！问答Ａa文章标题")
LABELS = 'data: x.jsonl\ntrain: {train}\nanswer: label\nlabels: {{1: 对, 0: 错}}\ntemplate: "{{text}}是{{option}}"\n'


def quiet(what: str) -> Any:
    return lambda done, total: None


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """By question, the text that stood in front of it."""
    found: dict[str, str] = {}
    candidates = prompting.FewShotPrefix.candidates

    def watched(self: prompting.FewShotPrefix, family: Any, before: str, options: Any, after: str = "") -> Any:
        found[before] = self.text()
        return candidates(self, family, before, options, after)

    monkeypatch.setattr(prompting.FewShotPrefix, "candidates", watched)
    return found


def reviews(folder: Path, train: str, texts: list[str]) -> Path:
    records = [{"text": text, "label": place % 2} for place, text in enumerate(texts)]
    write_lines(folder / "x.jsonl", records)
    (folder / "own.yaml").write_text(LABELS.format(train=train), encoding="utf-8")
    return folder / "own.yaml"


def own(path: Path, cache: Path, shots: int = 3, **more: Any) -> TaskResult:
    return evaluate(MODEL, custom_suite([read_task(path)]), Options(shots=shots, **more), cache, quiet).tasks[0]


def test_one_file_for_examples_and_questions(tmp_path: Path, seen: dict[str, str]) -> None:
    result = own(reviews(tmp_path, "x.jsonl", TEXTS), tmp_path)
    for text in TEXTS:
        front = seen[f"{text}是"]
        assert text not in front and sum(other in front for other in TEXTS) == 3, text
    assert result.notes == ["3 questions are among the examples themselves, and had others in front of them"]
    fronts = [seen[f"{text}是"] for text in TEXTS]
    assert len(set(fronts)) == 4, "the other three share what was drawn"


def test_a_duplicate_of_the_question_is_no_example_for_it_either(tmp_path: Path, seen: dict[str, str]) -> None:
    """Neither another record nor another width, case or punctuation of the same text."""
    twins = ["很好吃", "很 好吃！", "很好吃。", "还可以", "很新鲜", "等太久"]
    path = reviews(tmp_path, "more.jsonl", TEXTS)
    write_lines(tmp_path / "more.jsonl", [{"text": text, "label": place % 2} for place, text in enumerate(twins)])
    for seed in range(4):
        own(path, tmp_path, seed=seed)
        assert not any(twin in seen["很好吃是"] for twin in twins[:3])
        assert sum(other in seen["很好吃是"] for other in twins[3:]) == 3


def test_where_nothing_else_is_left_it_is_asked_without(tmp_path: Path, seen: dict[str, str]) -> None:
    own(reviews(tmp_path, "x.jsonl", TEXTS[:1]), tmp_path, shots=1)
    assert seen["很好吃是"] == ""


def test_questions_that_are_no_examples_all_see_the_same(tmp_path: Path, seen: dict[str, str]) -> None:
    path = reviews(tmp_path, "more.jsonl", TEXTS[:3])
    write_lines(tmp_path / "more.jsonl", [{"text": text, "label": place % 2} for place, text in enumerate(TEXTS[3:])])
    result = own(path, tmp_path, shots=2)
    assert len(set(seen.values())) == 1 and result.notes == [] and len(result.about["shots"]) == 2


def test_answers_kept_of_one_way_to_ask_are_not_taken_for_another(tmp_path: Path) -> None:
    """What stands in front of single questions is part of what the answers hang on."""
    path = reviews(tmp_path, "more.jsonl", TEXTS[:1])
    scores = []
    for other in ("不好吃", "太甜了"):
        write_lines(tmp_path / "more.jsonl", [{"text": "很好吃", "label": 0}, {"text": other, "label": 1}])
        scores.append(own(path, tmp_path, shots=1).items[0].scores)
    assert own(path, tmp_path / "fresh", shots=1).items[0].scores == scores[1] != scores[0]


@pytest.mark.parametrize("name", ["afqmc", "cmrc2018"])
def test_clue_with_its_development_split_as_training_split(name: str, tmp_path: Path, seen: dict[str, str]) -> None:
    for split in ("dev", "train"):
        if name == "afqmc":
            pairs = [{"sentence1": one, "sentence2": one[::-1], "label": str(n % 2)} for n, one in enumerate(TEXTS)]
            write_lines(tmp_path / name / f"{split}.json", pairs)
            continue
        asked = [{"context": one, "qas": [{"question": one, "answers": [{"text": one[:1], "answer_start": 0}]}]} for one in TEXTS]  # fmt: skip
        write_lines(tmp_path / name / f"{split}.json", [{"data": [{"paragraphs": asked}]}])
    evaluate(MODEL, clue_suite(tmp_path, [name]), Options(shots=4, limit=1024), tmp_path / "cache", quiet)
    fronts = {text: front for before, front in seen.items() for text in TEXTS if front and text in before}
    assert len(fronts) == len(TEXTS)
    for text, front in fronts.items():
        assert text not in front and sum(other in front for other in TEXTS) == 4


def test_an_exam_whose_examples_are_asked(tmp_path: Path, seen: dict[str, str]) -> None:
    subject = next(iter(all_exams()["ceval"].subjects))
    header = "id,question,A,B,C,D,answer,explanation"
    for split in ("val", "dev"):
        path = tmp_path / all_exams()["ceval"].files.format(split=split, subject=subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{n},{text},1,2,3,4,{'ABCD'[n % 4]},x" for n, text in enumerate(TEXTS)]
        path.write_text("\n".join([header, *lines]), encoding="utf-8")
    result = evaluate(MODEL, exam_suite("ceval", tmp_path, [subject]), Options(shots=5), tmp_path / "c", quiet)
    for text in TEXTS:
        (front,) = {front for before, front in seen.items() if text in before and front}
        assert text not in front and sum(other in front for other in TEXTS) == 5, text
    assert result.tasks[0].notes == ["5 questions are among the examples themselves, and had others in front of them"]
