"""The examinations as suites, and the published protocol of C-Eval and MMLU, flaws included, as recorded.

Few-shot examples are the first of the dev split. As published, a prompt has no instruction without examples, and where
they do not fit the last ones are dropped, then the instruction. ChatGLM's prompts are numbered rounds, one of which is
skipped. The answer is the letter whose first token is likeliest; letters are tokenised by themselves.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from hanmo.errors import ConfigError, HanmoError, RecordError, UnsupportedError, unknown
from hanmo.evaluation.engine.cache import Scored
from hanmo.evaluation.results.result import TaskResult
from hanmo.evaluation.suites.prompting import Candidates
from hanmo.evaluation.suites.runner import TaskRun, no_room
from hanmo.evaluation.suites.suite import UNKNOWN, Example, Protocol, Suite, Task, Template, choose_tasks, data_hash
from hanmo.families.base import OpenedModel
from hanmo.files import package_yaml
from hanmo.records import Text, opened_text
from hanmo.rows import Part

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", *LETTERS)
ANSWER = "answer"
LIMIT = 4096
DEV = "dev"  # the split whose questions are the few-shot examples
MAX_LENGTH = 1280
GENERATED = 1  # tokens reserved for the answer
THINKING = "让我们一步一步思考，\n"
EXPLANATION = "explanation"
Row = dict[str, str]
UNRECORDED = ("chatglm3", "qwen")  # models whose prompt form in the original is not recorded


@dataclass(frozen=True)
class Exam:
    """One examination; exams.yaml explains the attributes."""

    title: str
    files: str
    splits: tuple[str, ...]
    published: str
    subjects: dict[str, Task]


@cache
def all_exams() -> dict[str, Exam]:
    """The examinations by name, their subjects in the order in which they are evaluated."""
    return {name: _exam(value) for name, value in package_yaml("hanmo.evaluation.suites.exam", "exams.yaml").items()}


def _exam(value: dict[str, Any]) -> Exam:
    subjects = {}
    for place, (name, (title, *groups)) in enumerate(value["subjects"].items()):
        subjects[name] = Task(
            name=name,
            title=title,
            template=Template(value["template"]),
            shorten={"question": "start"},
            reading="sum",
            labels=dict(zip(LETTERS, LETTERS, strict=True)),
            instruction=value["instruction"].format(subject=title),
            groups=tuple(groups),
            place=place,
        )
    return Exam(value["title"], value["files"], tuple(value["splits"]), value.get("published", ""), subjects)


def read_subject(exam: Exam, task: Task, data: str | Path, split: str, first: int | None = None) -> list[Example]:
    """The questions of a subject, all with answers or all without. Every cell is text: a choice may be "None" or "nan".

    HanmoError if there are none; RecordError for a row without a question, four choices or, as others, an answer.
    """
    path = subject_file(exam, task, data, split)
    examples: list[Example] = []
    for line, row in _rows(path):
        answer = row.get(ANSWER, "").strip()
        if answer not in ("", *LETTERS):
            raise RecordError(path, line, f"the answer is {answer!r}; expected one of {', '.join(LETTERS)}")
        if examples and bool(answer) != bool(examples[0].label):
            raise RecordError(path, line, "some questions have answers and some have none; expected all or none")
        fields = {name: row[name] for name in COLUMNS} | {"id": row.get("id", str(len(examples)))}
        gold = LETTERS.index(answer) if answer else UNKNOWN
        examples.append(Example(fields, LETTERS, gold, f"{path}:{line}", answer))
    if not examples:
        raise HanmoError(f"{path}: no question in it")
    return examples[:first]


def subject_file(exam: Exam, task: Task, data: str | Path, split: str) -> Path:
    path = Path(data) / exam.files.format(split=split, subject=task.name)
    found = next((one for one in (path, path.with_name(path.name + ".gz")) if one.is_file()), None)
    if found is None:
        raise HanmoError(f"{path}: no such file; expected {exam.title} as its authors publish it, or name --subjects")
    return found


def _header(row: list[str]) -> list[str] | None:
    """The columns of a header, else None: letters in capitals, all else in small letters, the unnamed one "id"."""
    names = [name.strip().lower() for name in row]
    names = [name.upper() if name.upper() in LETTERS else name or "id" for name in names]
    return names if set(COLUMNS) <= set(names) else None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The line each row begins on, and its cells by column."""
    with opened_text(path, newline="") as file:
        table, line = csv.reader(file), 1
        names = [*COLUMNS, ANSWER]
        while (row := _row(table, path)) is not None:
            start, line = line, table.line_num + 1
            header = _header(row) if start == 1 else None
            if header is not None:
                names = header
            elif row and len(row) != len(names):
                raise RecordError(path, start, f"{len(row)} values; expected {len(names)}: {', '.join(names)}")
            elif row:
                yield start, dict(zip(names, row, strict=True))


def _row(table: Any, path: Path) -> list[str] | None:
    line = table.line_num + 1
    try:
        return next(table, None)
    except csv.Error as error:
        raise RecordError(path, line, f"not CSV: {error}") from None


def read_rows(path: Path, count: int | None = None) -> list[dict[str, str]]:
    """The first rows as published: pandas takes "None", "N/A" or "nan" for a missing value."""
    try:
        import pandas
    except ImportError:
        raise UnsupportedError(
            "--published reads files by pandas, which is not installed: pip install pandas"
        ) from None
    with opened_text(path, newline="") as file:
        names = _header(_row(csv.reader(file), path) or [])
        file.seek(0)
        try:
            frame = pandas.read_csv(file, header=None if names is None else 0)
        except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
            raise RecordError(path, 0, f"not CSV: {error}") from None
    names = names or [*COLUMNS, ANSWER]
    if len(frame.columns) != len(names):
        raise RecordError(path, 1, f"{len(frame.columns)} values; expected {len(names)}: {', '.join(names)}")
    frame.columns = names
    columns = {name: list(map(str, frame[name])) for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)][:count]


class Form(NamedTuple):
    """The form of prompts for a kind of model."""

    joint: str  # text between instruction, examples and question
    turn: str  # a question and its answer
    first: int = 0  # number of the first round
    opening: str = ""  # beginning of the model's answer, where answers explain themselves


PLAIN = Form("\n\n", "{block}{answer}", opening=THINKING + "1.")
FORMS = {  # by what is in the model's name
    "chatglm2": Form("\n\n", "[Round {round}]\n\n问：{block}\n\n答：{answer}", first=1),
    "chatglm": Form("\n", "[Round {round}]\n问：{block}\n答：{answer}"),
}


def exam_suite(kind: str, data: str | Path, subjects: Iterable[str] = ()) -> Suite:
    """An examination by name, with all subjects or those that are named; ConfigError for an unknown name."""
    if kind.lower() not in all_exams():
        raise ConfigError(unknown("examination", kind, all_exams()))
    exam = all_exams()[kind.lower()]
    corrected = Protocol(
        limit=LIMIT,
        pool=DEV,
        options=("budget", "split", "chat"),
        refused={"cot": "--cot is a form of the published prompts; give it with --published"},
    )
    as_published = Protocol(
        evaluate=partial(evaluate_published, exam, data),
        limit=MAX_LENGTH,
        pool=DEV,
        options=("budget", "split", "cot"),
        refused={"chat": "--published has its own prompt form for every model; leave --chat out"},
    )
    return Suite(
        name="exam",
        title=exam.title,
        tasks=choose_tasks(f"subject of {exam.title}", exam.subjects, subjects),
        read=lambda task, split, first: read_subject(exam, task, data, split, first),
        splits=exam.splits,
        corrected=corrected,
        published=as_published if exam.published else None,
        first_shots=True,
        id_field="id",
    )


def evaluate_published(
    exam: Exam, data: str | Path, run: TaskRun, examples: list[Example], pool: list[Example]
) -> TaskResult:
    """Evaluate a subject as published: its files are read once more, by pandas."""
    opened, task, options = run.opened, run.task, run.options
    form, limit = form_of(opened.source), run.limit - GENERATED
    questions, dev = (subject_file(exam, task, data, split) for split in (run.about["split"], DEV))
    solved = read_rows(dev, options.shots) if options.shots else []
    if options.cot and any(EXPLANATION not in row for row in solved):
        raise RecordError(dev, 1, f"no column {EXPLANATION!r}; ask without --cot")

    def fits(text: str) -> bool:
        return len(ids_of(opened, text)) <= limit

    rows = read_rows(questions, options.first)
    made = [build_prompt(exam, task, form, solved, row, options.cot, fits) for row in rows]
    with run.store(list[Scored], examples, made) as store:
        found = run.score([candidates(opened, prompt, limit) for prompt, _ in made], store)
    items = [
        run.item(one, {"published": [logprob for logprob, _ in of_letters]})
        for one, of_letters in zip(examples, found, strict=True)
    ]
    notes = no_room(sum(count < len(solved) for _, count in made))
    if options.cot:
        notes.append(
            "the first token is read as the answer, as published: no answer was ever taken from an explanation"
        )
    shots = pool[: options.shots]
    if len(shots) < options.shots:
        notes.append(f"only {len(shots)} examples in the dev split")
    about = {"data": data_hash(examples), "task": task.hash(), "shots": [shot.where for shot in shots]}
    return run.result("published", items, about, notes)


def form_of(model: str) -> Form:
    """The form for a model, by its name as in the original; UnsupportedError if it is not recorded."""
    name = Path(model).name.lower()
    if any(kind in name for kind in UNRECORDED):
        raise UnsupportedError(
            f"--published: how {model} was asked is not recorded; evaluate it without, e.g. with --chat"
        )
    return next((form for kind, form in FORMS.items() if kind in name), PLAIN)


def build_prompt(
    exam: Exam, task: Task, form: Form, shots: Sequence[Row], question: Row, explain: bool, fits: Callable[[str], bool]
) -> tuple[str, int]:
    """A prompt that ``fits``, and the number of examples in it; ``explain``: their answers explain themselves."""
    history = [task.instruction] if shots else []
    for number, shot in enumerate(shots, form.first):
        answer = shot[ANSWER]
        if explain:
            answer = f"{THINKING}{shot[EXPLANATION]}\n所以答案是{answer}。"
        history.append(form.turn.format(round=number, block=_block(exam, shot), answer=answer))
    opening = form.opening if explain else ""
    last = form.turn.format(round=len(history) + form.first, block=_block(exam, question), answer=opening)
    while history and not fits(form.joint.join([*history, last])):
        history.pop()
    return form.joint.join([*history, last]), max(len(history) - 1, 0)


def ids_of(opened: OpenedModel, text: str, limit: int | None = None) -> tuple[int, ...]:
    """A prompt as the model reads it, cut to ``limit`` ids on the family's side."""
    text += opened.family.blank
    return opened.family.context(Text(text), limit or len(text) * 4 + 16).ids  # no text has more tokens


def candidates(opened: OpenedModel, prompt: str, limit: int) -> Candidates:
    """The first token of each letter after a prompt of at most ``limit`` tokens."""
    context = Part(ids_of(opened, prompt, limit), False)
    letters = [opened.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in LETTERS]
    return [[context, Part((token,), True)] for token in letters]


def _block(exam: Exam, row: Row) -> str:
    choices = "".join(f"{letter}. {row[letter]}\n" for letter in LETTERS)
    return f"{row['question']}\n{choices}{exam.published}"
