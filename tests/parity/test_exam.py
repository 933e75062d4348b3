"""C-Eval and MMLU as published, against the recorded prompts; and what the default protocol makes of the same files.

Files, runs, models, subjects and shots come from the recorded cases; the files are written out and read back.
"""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from hanmo.evaluation.suites import prompting
from hanmo.evaluation.suites.exam import suite as published
from hanmo.evaluation.suites.exam.suite import (
    DEV,
    LETTERS,
    Exam,
    all_exams,
    exam_suite,
    read_rows,
    read_subject,
    subject_file,
)
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Options, choose_tasks
from hanmo.families.base import OpenedModel
from tests.places import PARITY, load, needs_parity
from tests.unit.exam_files import one_token_a_character

pytestmark = needs_parity("clue")
CASES = load(PARITY / "clue/cases/ceval_mmlu.json", {})
SUBJECTS = load(PARITY / "clue/subjects.json", {})
TEMPLATES = load(PARITY / "clue/templates.json", {})
RUNS = [(name, number) for name in CASES for number in range(len(CASES[name]["runs"]))]
DOMAINS = dict.fromkeys(CASES, -1)  # what is recorded of a subject ends with its domain


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exams")
    for name, case in CASES.items():
        for split, subjects in case["csv_files"].items():
            for subject, content in subjects.items():
                path = folder / name / all_exams()[name].files.format(split=split, subject=subject)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
    return {name: folder / name for name in CASES}


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    contents = [text for case in CASES.values() for one in case["csv_files"].values() for text in one.values()]
    prompts = [item["prompt"] for case in CASES.values() for run in case["runs"] for item in run["items"]]
    return one_token_a_character([*contents, *prompts])


def split_of(name: str) -> str:
    (split,) = CASES[name]["csv_files"].keys() - {DEV}
    return split


@pytest.mark.parametrize(("name", "number"), RUNS)
def test_published_prompts(name: str, number: int, files: dict[str, Path], opened: OpenedModel) -> None:
    exam, run, found = all_exams()[name], CASES[name]["runs"][number], []
    form, room = published.form_of(run["model_name"]), run["max_length"] - run["max_length_generation"]
    for task in choose_tasks("", exam.subjects, {item["subject"] for item in run["items"]}):
        rows, solved = (
            read_rows(subject_file(exam, task, files[name], split), count)
            for split, count in ((split_of(name), None), (DEV, run["max_few_shot"] or 0))
        )
        for row in rows:
            prompt, kept = published.build_prompt(
                exam, task, form, solved, row, run["cot"], lambda text: len(published.ids_of(opened, text)) <= room
            )
            found.append((task.name, prompt, kept, row["answer"]))
    recorded = [
        tuple(item[key] for key in ("subject", "prompt", "n_shots_reported", "answer")) for item in run["items"]
    ]
    assert sorted(found) == sorted(recorded)


@pytest.mark.parametrize("name", CASES)
def test_the_default_protocol_leaves_every_cell_as_it_stands(
    name: str, files: dict[str, Path], opened: OpenedModel
) -> None:
    """The cells by the csv module alone, all of them in the questions, and the letter after the very text before it."""
    exam = all_exams()[name]
    for split, subjects in CASES[name]["csv_files"].items():
        for subject, content in subjects.items():
            task = exam.subjects[subject]
            examples = read_subject(exam, task, files[name], split)
            rows = list(csv.reader(io.StringIO(content)))
            rows = rows[len(rows) - len(examples) :]
            plan = prompting.prepare_questions(
                opened.family, task, examples, [[prompting.FewShotPrefix(task.instruction)]] * len(examples), 10**6
            )
            for row, example, question in zip(rows, examples, plan.questions, strict=True):
                cells = [example.fields[column] for column in ("question", *LETTERS)]
                assert cells == row[row.index(cells[0]) :][:5] and example.label == row[row.index(cells[0]) + 5]
                block = task.template.text.format(**example.fields, option="{}")
                for letter, parts in zip(LETTERS, question, strict=True):
                    text = opened.tokenizer.decode([id_ for part in parts for id_ in part.ids])
                    assert text == f"{task.instruction}\n\n{block.format(letter)}"
                    assert opened.tokenizer.decode(parts[-1].ids) == letter


@pytest.mark.parametrize(("name", "number"), RUNS)
def test_recorded_files_are_evaluated(
    name: str, number: int, files: dict[str, Path], opened: OpenedModel, tmp_path: Path
) -> None:
    """Both protocols, to the end, in every recorded setting; the letter chosen is the likeliest after the recorded prompt."""
    run = CASES[name]["runs"][number]
    suite = exam_suite(name, files[name], {item["subject"] for item in run["items"]})
    model = OpenedModel(opened.network, opened.family, run["model_name"])
    shots = run["max_few_shot"] or 0

    def sit(**more: Any) -> Any:
        options = Options(shots=shots, split=split_of(name), **more)
        return evaluate(model, suite, options, tmp_path, lambda what: lambda done, total: None)

    found = sit(published=True, cot=run["cot"], limit=run["max_length"])
    chosen = [letter for answers in found.submission.values() for letter in answers.values()]
    order = [task.name for task in suite.tasks]
    items = sorted(run["items"], key=lambda item: order.index(item["subject"]))
    expected = [likeliest(model, item["prompt"]) for item in items]
    assert chosen == expected
    right = [float(letter == item["answer"]) for letter, item in zip(chosen, items, strict=True)]
    assert [value for task in found.tasks for value in task.right["published"]] == right
    corrected = sit()
    assert corrected.about["protocol"] == "corrected" and len(corrected.tasks) == len(suite.tasks)


def likeliest(opened: OpenedModel, prompt: str) -> str:
    import torch

    ids = torch.tensor([opened.tokenizer.encode(prompt)])
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits_V = opened.network(**inputs).logits[0, -1]
    return max(LETTERS, key=lambda letter: float(logits_V[opened.tokenizer.encode(letter)[0]]))


@pytest.mark.parametrize("name", SUBJECTS)
def test_subjects(name: str) -> None:
    """All recorded ones in their order, with their names and domains."""
    exam = all_exams()[name]
    assert list(exam.subjects) == list(SUBJECTS[name])
    for subject, recorded in SUBJECTS[name].items():
        task = exam.subjects[subject]
        assert task.title == recorded.get("chinese", recorded.get("name")) and task.groups[0] == recorded["domain"]
    for subject, names in CASES.get(name, {}).get("subject_mapping", {}).items():
        assert exam.subjects[subject].title in names and exam.subjects[subject].groups[0] == names[DOMAINS[name]]


@pytest.mark.parametrize("name", CASES)
def test_templates(name: str) -> None:
    """The recorded question and instruction are what our data says."""
    exam: Exam = all_exams()[name]
    recorded = TEMPLATES[name]
    row = {"question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁"}
    prompt, _ = published.build_prompt(exam, next(iter(exam.subjects.values())), published.PLAIN, [], row, False, bool)
    assert prompt == recorded["question_block"].format(**row)
    for task in exam.subjects.values():
        before, _, after = recorded["few_shot_prefix"].partition("{")
        assert task.instruction == before + task.title + after.partition("}")[2]
