"""The ten CLUE tasks: data, read from tasks.yaml, and their files as CLUE publishes them, perhaps gzip-compressed.

One function reads each layout and checks all records.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.errors import HanmoError, RecordError
from hanmo.evaluation.suites.suite import Example, Task, Template, read_tasks
from hanmo.files import data_of
from hanmo.records import opened_text

BLANK = re.compile(r"#idiom\d*#")
GAP = "____"
SPLITS = {"dev": ("dev.json", "*dev.json"), "train": ("train.json", "*train*.json")}
SUFFIXES = ("", ".gz")


@dataclass(frozen=True)
class PublishedForm:
    """The original's form of a task."""

    template: Template
    words: dict[str, str] = field(default_factory=dict)  # the candidate for each label, if it differs from ours
    drawn: int = 0  # number of wrong labels drawn for each record; 0: all labels are candidates
    # The index of the only option that makes a prompt; the candidates are neighbouring records.
    only: int | None = None
    filled_to: int = 0  # lists of candidates are filled up to this length with names of no prompt


@dataclass(frozen=True, kw_only=True)
class ClueTask(Task):
    """A task; tasks.yaml explains the attributes."""

    layout: str
    published: PublishedForm
    skip: str = ""


@functools.cache
def all_tasks() -> dict[str, ClueTask]:
    """The tasks by name, in the order of the published table."""
    return read_tasks(Path(__file__).with_name("tasks.yaml"), _task)


def _task(published: dict[str, Any], **values: Any) -> ClueTask:
    form = PublishedForm(**{**published, "template": Template(published["template"])})
    return ClueTask(published=form, **values)


def read_split(task: ClueTask, data: str | Path, split: str, first: int | None = None) -> list[Example]:
    """The examples of a split ("dev" or "train") in the order of the files, or only the ``first``.

    ``data`` holds a folder per task, named as the task or as CLUE's archives (``tnews_public``). HanmoError if there is
    no example; RecordError for a record that does not have the form of its layout.
    """
    paths = _split_files(task, data, split)
    records, layout = LAYOUTS[task.layout]
    places = ((place, record) for path in paths for place, record in records(path))
    examples = list(islice((one for place, record in places for one in layout(task, record, place)), first))
    if not examples:
        raise HanmoError(f"{', '.join(map(str, paths))}: no example of {task.title} in it")
    return examples


def _split_files(task: ClueTask, data: str | Path, split: str) -> list[Path]:
    """The files of a split, without CHID's files of answers."""
    names = [variant for base in (task.name, task.title) for variant in (base, f"{base}_public")]
    folder = next((path for path in map(Path(data).joinpath, names) if path.is_dir()), None)
    if folder is None:
        raise HanmoError(f"{data}: no folder for {task.title}; expected one of {', '.join(names)} in it")
    for pattern in SPLITS[split]:
        found = [path for suffix in SUFFIXES for path in folder.glob(pattern + suffix) if "answer" not in path.name]
        if found:
            return sorted(found)
    raise HanmoError(
        f"{folder}: no {split} split of {task.title}; expected {' or '.join(SPLITS[split])}, as CLUE publishes it"
        + (" (examples in the prompt are taken from there; or ask without: --shots 0)" if split == "train" else "")
    )


@dataclass(frozen=True)
class _Place:
    """The line of a record, or its number in a file that is one JSON document."""

    path: Path
    number: int
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"

    def bad(self, problem: str) -> RecordError:
        return RecordError(self.path, self.number, self.unit + problem)

    def text(self, record: Any, name: str) -> str:
        value = record.get(name) if isinstance(record, dict) else None
        if not isinstance(value, str):
            problem = "is missing" if value is None else f"is {type(value).__name__}"
            raise self.bad(f"field {name!r} {problem}; expected a string")
        return value

    def texts(self, values: Any, least: int, problem: str) -> list[str]:
        if not isinstance(values, list) or len(values) < least or not all(isinstance(one, str) for one in values):
            raise self.bad(problem)
        return values

    def objects(self, record: Any, name: str) -> list[dict[str, Any]]:
        values = record.get(name, []) if isinstance(record, dict) else None
        if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
            raise self.bad(f"field {name!r} is not a list of objects")
        return values

    def labelled(self, task: ClueTask, record: dict[str, Any], fields: dict[str, str]) -> Example:
        label = record.get("label")
        if isinstance(label, int) and not isinstance(label, bool):
            label = str(label)  # FewCLUE writes numbers
        if not isinstance(label, str) or label not in task.labels:
            expected = ", ".join(list(task.labels)[:20])
            raise self.bad(f"label {label!r} is none of {task.title}'s; expected one of {expected}")
        gold = list(task.labels).index(label)
        return Example(fields, tuple(task.labels.values()), gold, str(self), label)


def _sentences(task: ClueTask, record: dict[str, Any], place: _Place) -> Iterator[Example]:
    if not task.skip or record.get("label") != task.skip:
        yield place.labelled(task, record, {name: place.text(record, name) for name in ("sentence1", "sentence2")})


def _abstracts(task: ClueTask, record: dict[str, Any], place: _Place) -> Iterator[Example]:
    found = record.get("keyword")
    keywords = place.texts(found, 1, f"keyword is {found!r}; expected a list of strings")
    fields = {"abst": place.text(record, "abst"), "joined": "+".join(keywords), "keywords": "、".join(keywords)}
    yield place.labelled(task, record, fields)


def _topics(task: ClueTask, record: dict[str, Any], place: _Place) -> Iterator[Example]:
    example = place.labelled(task, record, {"sentence": place.text(record, "sentence")})
    name = record.get("label_des")
    if name is not None and name != task.labels[example.label]:
        expected = task.labels[example.label]
        raise place.bad(f"label_des is {name!r}, but label {example.label} means {expected!r}")
    yield example


def _pronouns(_: ClueTask, record: dict[str, Any], place: _Place) -> Iterator[Example]:
    """The options are the unchanged pronoun and the noun in its place; "true" means that the noun is right."""
    text, target = place.text(record, "text"), record.get("target")
    if not isinstance(target, dict):
        raise place.bad("no object 'target'; expected span1_text, span2_text and their indices")
    noun, pronoun = place.text(target, "span1_text"), place.text(target, "span2_text")
    start = target.get("span2_index")
    if not isinstance(start, int) or text[start : start + len(pronoun)] != pronoun:
        raise place.bad(f"span2_index {start!r} is not where {pronoun!r} stands in the text")
    label = str(record.get("label"))
    if label not in ("true", "false"):
        raise place.bad(f"label {label!r}; expected 'true' or 'false'")
    fields = {"before": text[:start], "after": text[start + len(pronoun) :]}
    yield Example(fields, (pronoun, noun), int(label == "true"), str(place), label)


def _idioms(_: ClueTask, record: dict[str, Any], place: _Place) -> Iterator[Example]:
    """A question for each blank. Answers are in the records (FewCLUE) or in the files of answers (CLUE)."""
    problem = "candidates are missing; expected a list of at least two idioms"
    options = tuple(place.texts(record.get("candidates"), 2, problem))
    content = record.get("content")
    passages = [content] if isinstance(content, str) else content
    for passage in place.texts(passages, 0, "content is missing; expected a list of passages"):
        for blank in BLANK.finditer(passage):
            answer = record["answer"] if "answer" in record else record["answers"]().get(blank.group())
            if not isinstance(answer, int) or not 0 <= answer < len(options):
                raise place.bad(
                    f"{blank.group()} has the answer {answer!r}; expected 0 to {len(options) - 1}, from "
                    "the record's answer or from dev_answer.json / train_answer.json beside the file"
                )
            before, after = passage[: blank.start()], passage[blank.end() :]
            fields = {"raw_before": before, "raw_after": after}
            fields |= {"before": BLANK.sub(GAP, before), "after": BLANK.sub(GAP, after)}
            yield Example(fields, options, answer, str(place), options[answer])


def _dialogues(_: ClueTask, record: Any, place: _Place) -> Iterator[Example]:
    if not (isinstance(record, list) and len(record) >= 2 and all(isinstance(part, list) for part in record[:2])):
        raise place.bad("expected [lines, questions, id]")
    lines = place.texts(record[0], 0, "expected the lines to be strings")
    for question in record[1]:
        text, answer = (place.text(question, name) for name in ("question", "answer"))
        options = place.texts(question.get("choice"), 2, "'choice' is not a list of two to four strings")
        if answer not in options:
            raise place.bad(f"the answer {answer!r} is not among the choices {options!r}")
        fields = {"lines": "\n".join(lines), "joined": "".join(lines), "question": text}
        yield Example(fields, tuple(options), options.index(answer), str(place), answer)


def _passages(_: ClueTask, record: Any, place: _Place) -> Iterator[Example]:
    for paragraph in place.objects(record, "paragraphs"):
        context = place.text(paragraph, "context")
        for question in place.objects(paragraph, "qas"):
            answered = place.objects(question, "answers")
            found = [(place.text(one, "text"), repr(one.get("answer_start"))) for one in answered]
            if not found:
                raise place.bad("a question without answers; expected [{'text': …}]")
            answers = tuple(text for text, _ in dict.fromkeys(found))
            fields = {"context": context, "question": place.text(question, "question")}
            yield Example(fields, (), 0, str(place), answers[0], answers)


Records = Iterator[tuple[_Place, Any]]
Layout = Callable[[ClueTask, Any, _Place], Iterator[Example]]


def _lines(path: Path) -> Records:
    for line, record in SourceReader().json_objects(path):
        yield _Place(path, line), record


def _with_answers(path: Path) -> Records:
    """CHID's records, each with a function that returns the answers of the files beside them."""
    answers = functools.cache(lambda: _answers(path))
    for place, record in _lines(path):
        yield place, record | {"answers": answers}


def _answers(path: Path) -> dict[str, Any]:
    """All files of answers joined; for an idiom in several files, the training set's answer counts."""
    files = sorted(path.parent.glob("*answer.json*"))
    if not files:
        raise HanmoError(
            f"{path.parent}: no answers; expected dev_answer.json and train_answer.json beside {path.name}"
        )
    joined: dict[str, Any] = {}
    for file in files:  # "dev" comes before "train"
        joined |= _document(file, dict, "an object: '#idiomNNNNNN#' and the index of the right candidate")
    return joined


def _array(path: Path) -> Records:
    for number, record in enumerate(_document(path, list, "a JSON array of [lines, questions, id]"), 1):
        yield _Place(path, number, "(record) "), record


def _squad(path: Path) -> Records:
    form = "the SQuAD form: {'data': [{'paragraphs': …}]}"
    articles = _document(path, dict, form).get("data")
    if not isinstance(articles, list):
        raise RecordError(path, 1, f"expected {form}")
    for number, record in enumerate(articles, 1):
        yield _Place(path, number, "(record) "), record


def _document(path: Path, kind: type[Any], form: str) -> Any:
    try:
        with opened_text(path) as file:
            content = data_of(file.read())
    except json.JSONDecodeError as error:
        raise RecordError(path, error.lineno, f"not JSON: {error.msg}, column {error.colno}") from None
    if not isinstance(content, kind):
        raise RecordError(path, 1, f"expected {form}")
    return content


LAYOUTS: dict[str, tuple[Callable[[Path], Records], Layout]] = {
    "sentences": (_lines, _sentences),
    "abstracts": (_lines, _abstracts),
    "topics": (_lines, _topics),
    "pronouns": (_lines, _pronouns),
    "idioms": (_with_answers, _idioms),
    "dialogues": (_array, _dialogues),
    "passages": (_squad, _passages),
}
