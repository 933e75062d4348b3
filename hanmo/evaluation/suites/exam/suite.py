"""The examinations as suites, and the published protocol of C-Eval and MMLU, flaws included, as recorded.

Every subject is a task; few-shot examples are the first of the dev split. As published, a prompt has no instruction
without examples, and where they do not fit the last ones are dropped, then the instruction. ChatGLM is asked in
numbered rounds, of which one is skipped. The answer is the letter whose first token, of the letter by itself, is
likeliest.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hanmo.errors import RecordError, UnsupportedError
from hanmo.evaluation.results.result import TaskResult
from hanmo.evaluation.suites.exam.exams import ANSWER, LETTERS, Exam, find_exam, read_rows, read_subject, subject_file
from hanmo.evaluation.suites.prompting import Candidates
from hanmo.evaluation.suites.runner import TaskRun, no_room
from hanmo.evaluation.suites.suite import Example, Protocol, Suite, Task, choose_tasks, data_hash
from hanmo.families.base import OpenedModel
from hanmo.records import Text
from hanmo.rows import Part

LIMIT = 4096
DEV = "dev"  # the split whose questions are the few-shot examples
MAX_LENGTH = 1280
GENERATED = 1  # tokens that are left for the answer
THINKING = "让我们一步一步思考，\n"
EXPLANATION = "explanation"
Row = dict[str, str]
UNRECORDED = ("chatglm3", "qwen")  # models whose form in the original is not recorded


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
    """An examination by name, its files in the folder ``data``, with all subjects or those that are named.

    Raises:
        ConfigError: there is no such examination or subject.
    """
    exam = find_exam(kind)
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
        refused={"chat": "--published asks every model in a form of its own; leave --chat out"},
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
    with run.store(examples, made) as store:
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
    """The form for a model, by its name as in the original.

    Raises:
        UnsupportedError: the original's form is not recorded.
    """
    name = Path(model).name.lower()
    if any(kind in name for kind in UNRECORDED):
        raise UnsupportedError(
            f"--published: how {model} was asked is not recorded; evaluate it without, e.g. with --chat"
        )
    return next((form for kind, form in FORMS.items() if kind in name), PLAIN)


def build_prompt(
    exam: Exam, task: Task, form: Form, shots: Sequence[Row], question: Row, explain: bool, fits: Callable[[str], bool]
) -> tuple[str, int]:
    """A prompt, and the number of examples in it.

    Args:
        explain: the examples' answers explain themselves.
        fits: whether a text leaves room for the answer.
    """
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
