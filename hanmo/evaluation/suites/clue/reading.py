"""Reading CLUE's files as they are published: one function for each layout, all records checked.

A bad record is an error with file, line (or the number of the record, where a file is one JSON document) and what
was expected. Files may be gzip-compressed.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hanmo.errors import HanmoError, RecordError
from hanmo.evaluation.suites.clue.tasks import ClueTask
from hanmo.evaluation.suites.task import Example
from hanmo.files import data_of

BLANK = re.compile(r"#idiom\d*#")
GAP = "____"
SPLITS = {"dev": ("dev.json", "*dev.json"), "train": ("train.json", "*train*.json")}
SUFFIXES = ("", ".gz")


def read_split(task: ClueTask, data: str | Path, split: str, first: int | None = None) -> list[Example]:
    """The examples of a split under a folder of CLUE data, in the order of the files.

    Args:
        data: the folder that holds one folder per task, named as the task or as CLUE's archives (``tnews_public``).
        split: "dev" or "train".
        first: only so many.

    Raises:
        HanmoError: folder or files are missing, or hold no example.
        RecordError: a record is not what its layout says.
    """
    paths = split_files(task, data, split)
    examples: list[Example] = []
    for path in paths:
        for example in LAYOUTS[task.layout](task, path):
            if first is not None and len(examples) >= first:
                return examples
            examples.append(example)
    if not examples:
        raise HanmoError(f"{', '.join(map(str, paths))}: no example of {task.title} in it")
    return examples


def split_files(task: ClueTask, data: str | Path, split: str) -> list[Path]:
    """The files of a split: ``dev.json``, or all that end so; answers of CHID are not among them."""
    data = Path(data)
    names = [variant for base in (task.name, task.title) for variant in (base, f"{base}_public")]
    folders = [data / name for name in names if (data / name).is_dir()]
    if not folders:
        raise HanmoError(f"{data}: no folder for {task.title}; expected one of {', '.join(names)} in it")
    for pattern in SPLITS[split]:
        found = {path for suffix in SUFFIXES for path in folders[0].glob(pattern + suffix)}
        found = {path for path in found if "answer" not in path.name}
        if found:
            return sorted(found)
    raise HanmoError(
        f"{folders[0]}: no {split} split of {task.title}; expected {' or '.join(SPLITS[split])}, as CLUE publishes it"
        + (" (examples in the prompt are taken from there; or ask without: --shots 0)" if split == "train" else "")
    )


def _sentences(task: ClueTask, path: Path) -> Iterator[Example]:
    for line, record in _lines(path):
        if task.skip and record.get("label") == task.skip:
            continue
        label = _label(record, task, path, line)
        fields = {name: _text(record, name, path, line) for name in ("sentence1", "sentence2")}
        yield _labelled(task, fields, label, path, line)


def _abstracts(task: ClueTask, path: Path) -> Iterator[Example]:
    for line, record in _lines(path):
        keywords = record.get("keyword")
        if not isinstance(keywords, list) or not keywords or not all(isinstance(word, str) for word in keywords):
            raise RecordError(path, line, f"keyword is {keywords!r}; expected a list of strings")
        fields = {"abst": _text(record, "abst", path, line)}
        fields |= {"joined": "+".join(keywords), "keywords": "、".join(keywords)}
        yield _labelled(task, fields, _label(record, task, path, line), path, line)


def _topics(task: ClueTask, path: Path) -> Iterator[Example]:
    for line, record in _lines(path):
        label = _label(record, task, path, line)
        name = record.get("label_des")
        if name is not None and name != task.labels[label]:
            raise RecordError(path, line, f"label_des is {name!r}, but label {label} means {task.labels[label]!r}")
        yield _labelled(task, {"sentence": _text(record, "sentence", path, line)}, label, path, line)


def _pronouns(task: ClueTask, path: Path) -> Iterator[Example]:
    """The options are the pronoun as it stands and the noun in its place; "true" says that the noun is right."""
    for line, record in _lines(path):
        text, target = _text(record, "text", path, line), record.get("target")
        if not isinstance(target, dict):
            raise RecordError(path, line, "no object 'target'; expected span1_text, span2_text and their indices")
        noun, pronoun = _text(target, "span1_text", path, line), _text(target, "span2_text", path, line)
        start = target.get("span2_index")
        if not isinstance(start, int) or text[start : start + len(pronoun)] != pronoun:
            raise RecordError(path, line, f"span2_index {start!r} is not where {pronoun!r} stands in the text")
        label = str(record.get("label"))
        if label not in ("true", "false"):
            raise RecordError(path, line, f"label {label!r}; expected 'true' or 'false'")
        fields = {"before": text[:start], "after": text[start + len(pronoun) :]}
        yield Example(fields, (pronoun, noun), int(label == "true"), f"{path}:{line}", label)


def _idioms(task: ClueTask, path: Path) -> Iterator[Example]:
    """A question for each blank. Answers stand in the records (FewCLUE) or in the files of answers (CLUE)."""
    answers: dict[str, Any] | None = None
    for line, record in _lines(path):
        options = record.get("candidates")
        if not isinstance(options, list) or len(options) < 2 or not all(isinstance(one, str) for one in options):
            raise RecordError(path, line, "candidates are missing; expected a list of at least two idioms")
        passages = record.get("content")
        passages = [passages] if isinstance(passages, str) else passages
        if not isinstance(passages, list) or not all(isinstance(text, str) for text in passages):
            raise RecordError(path, line, "content is missing; expected a list of passages")
        if "answer" not in record and answers is None:
            answers = _answers(path)
        for passage in passages:
            for blank in BLANK.finditer(passage):
                answer = record["answer"] if "answer" in record else (answers or {}).get(blank.group())
                if not isinstance(answer, int) or not 0 <= answer < len(options):
                    raise RecordError(
                        path,
                        line,
                        f"{blank.group()} has the answer {answer!r}; expected 0 to {len(options) - 1}, from "
                        "the record's answer or from dev_answer.json / train_answer.json beside the file",
                    )
                before, after = passage[: blank.start()], passage[blank.end() :]
                fields = {"raw_before": before, "raw_after": after}
                fields |= {"before": BLANK.sub(GAP, before), "after": BLANK.sub(GAP, after)}
                yield Example(fields, tuple(options), answer, f"{path}:{line}", options[answer])


def _answers(path: Path) -> dict[str, Any]:
    """All files of answers beside CHID's records, joined; of an idiom in several that of the training set counts."""
    files = sorted(path.parent.glob("*answer.json*"))
    if not files:
        raise HanmoError(
            f"{path.parent}: no answers; expected dev_answer.json and train_answer.json beside {path.name}"
        )
    merged: dict[str, Any] = {}
    for file in files:  # "dev" comes before "train"
        answers = _document(file)
        if not isinstance(answers, dict):
            raise RecordError(file, 1, "expected an object: '#idiomNNNNNN#' and the index of the right candidate")
        merged |= answers
    return merged


def _dialogues(task: ClueTask, path: Path) -> Iterator[Example]:
    content = _document(path)
    if not isinstance(content, list):
        raise RecordError(path, 1, "expected a JSON array of [lines, questions, id]")
    for number, record in enumerate(content, 1):
        if not (isinstance(record, list) and len(record) >= 2 and all(isinstance(part, list) for part in record[:2])):
            raise RecordError(path, number, "(record) expected [lines, questions, id]")
        lines, questions = record[:2]
        if not all(isinstance(text, str) for text in lines):
            raise RecordError(path, number, "(record) expected the lines to be strings")
        for question in questions:
            asked = _text(question, "question", path, number)
            options, answer = question.get("choice"), question.get("answer")
            if not isinstance(options, list) or len(options) < 2 or answer not in options:
                raise RecordError(
                    path,
                    number,
                    f"(record) the answer {answer!r} is not among the choices {options!r}; expected 2 to 4",
                )
            fields = {"lines": "\n".join(lines), "joined": "".join(lines), "question": asked}
            yield Example(fields, tuple(options), options.index(answer), f"{path}:{number}", answer)


def _passages(task: ClueTask, path: Path) -> Iterator[Example]:
    content = _document(path)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise RecordError(path, 1, "expected the SQuAD form: {'data': [{'paragraphs': …}]}")
    for number, article in enumerate(content["data"], 1):
        for paragraph in article.get("paragraphs", ()):
            context = _text(paragraph, "context", path, number)
            for question in paragraph.get("qas", ()):
                found = [(one.get("text"), one.get("answer_start")) for one in question.get("answers", ())]
                if not found or not all(isinstance(text, str) for text, _ in found):
                    raise RecordError(path, number, "(record) a question without answers; expected [{'text': …}]")
                answers = tuple(text for text, _ in dict.fromkeys(found))
                fields = {"context": context, "question": _text(question, "question", path, number)}
                yield Example(fields, (), 0, f"{path}:{number}", answers[0], answers)


LAYOUTS: dict[str, Callable[[ClueTask, Path], Iterator[Example]]] = {
    "sentences": _sentences,
    "abstracts": _abstracts,
    "topics": _topics,
    "pronouns": _pronouns,
    "idioms": _idioms,
    "dialogues": _dialogues,
    "passages": _passages,
}


def _labelled(task: ClueTask, fields: dict[str, str], label: str, path: Path, line: int) -> Example:
    options = tuple(task.labels.values())
    return Example(fields, options, list(task.labels).index(label), f"{path}:{line}", label)


def _label(record: dict[str, Any], task: ClueTask, path: Path, line: int) -> str:
    label = record.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)  # FewCLUE writes numbers
    if label not in task.labels:
        expected = ", ".join(list(task.labels)[:20])
        raise RecordError(path, line, f"label {label!r} is none of {task.title}'s; expected one of {expected}")
    return str(label)


def _text(record: Any, name: str, path: Path, line: int) -> str:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, str):
        problem = "is missing" if value is None else f"is {type(value).__name__}"
        raise RecordError(path, line, f"field {name!r} {problem}; expected a string")
    return value


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON lines with their numbers from 1; only a line feed ends a line, and empty lines are passed over."""
    for number, text in enumerate(_content(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            record = data_of(text)
        except json.JSONDecodeError as error:
            raise RecordError(
                path, number, f"not JSON ({error.msg}, column {error.colno}); expected an object"
            ) from None
        if not isinstance(record, dict):
            raise RecordError(path, number, f"{type(record).__name__}; expected a JSON object a line")
        yield number, record


def _document(path: Path) -> Any:
    try:
        return data_of(_content(path))
    except json.JSONDecodeError as error:
        raise RecordError(path, error.lineno, f"not JSON: {error.msg}, column {error.colno}") from None


def _content(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return bytes(file.read()).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError) as error:
        raise RecordError(path, 0, f"damaged gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(path, 0, f"not UTF-8: byte {error.start}") from None
