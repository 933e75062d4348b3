"""The records hanmo reads and writes: what one line of data means, whatever file it came from.

A file's form is told from its content. Plain text is one dialogue a line, turns separated by tabs (or one text a
line, when asked for); JSON is one record a line, or one array of records. What an object means is told from its keys,
see ``FORMS``. Any file may be gzip-compressed.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TextIO

from hanmo.errors import RecordError
from hanmo.files import replacing


@dataclass(frozen=True)
class Text:
    """Running text, for pretraining and perplexity."""

    text: str
    where: str = field(default="", compare=False)  # "file:line", for messages


@dataclass(frozen=True)
class Dialogue:
    """Turns that alternate between the user and the system. The last turn is what the model is to say.

    ``ids``: in a chat, the ids of a turn that the model has said, so that they are never made from its text again;
    one entry per turn, None where there is only text.
    """

    turns: tuple[str, ...]
    system: str = ""
    where: str = field(default="", compare=False)
    ids: tuple[tuple[int, ...] | None, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class PromptResponse:
    """One prompt and the response to learn. ``prefix`` opens the response and is given, not learned ("答：")."""

    prompt: str
    response: str
    prefix: str = ""
    system: str = ""
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class ScoredAnswers:
    """One prompt and several (answer, score) pairs, a higher score being the better answer.

    ``history``: the turns before the prompt, where the answers end a dialogue. A chosen and a rejected answer have the
    scores 1 and 0.
    """

    prompt: str
    answers: tuple[tuple[str, float], ...]
    prefix: str = ""
    system: str = ""
    where: str = field(default="", compare=False)
    history: tuple[str, ...] = ()

    def best(self) -> PromptResponse:
        """The best answer (the first of equals) as the response to learn; the history stands before it, a line a turn."""
        answer = max(self.answers, key=lambda pair: pair[1])[0]
        prompt = "\n".join((*self.history, self.prompt))
        return PromptResponse(prompt, answer, self.prefix, self.system, self.where)

    def ending(self, answer: str) -> Dialogue | PromptResponse:
        """The record that ends in this answer: a dialogue if there is a history."""
        if self.history and not self.prefix:
            return Dialogue((*self.history, self.prompt, answer), self.system, self.where)
        return PromptResponse("\n".join((*self.history, self.prompt)), answer, self.prefix, self.system, self.where)


Record = Text | Dialogue | PromptResponse | ScoredAnswers
Plain = Literal["dialogue", "text"]


@dataclass
class Rejects:
    """Bad records that were passed over instead of stopping the reading."""

    errors: list[RecordError] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.errors)

    def write(self, path: str | Path) -> None:
        """One JSON object a line: file, line, problem."""
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            for error in self.errors:
                entry = {"file": error.path, "line": error.line, "problem": error.problem}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_records(path: str | Path, rejects: Rejects | None = None, plain: Plain = "dialogue") -> list[Record]:
    """All records of a file; see ``iter_records``."""
    return list(iter_records(path, rejects, plain))


def iter_records(path: str | Path, rejects: Rejects | None = None, plain: Plain = "dialogue") -> Iterator[Record]:
    """The records of a file, one after the other.

    Args:
        rejects: takes bad records, which are then passed over; without it the first one stops the reading.
        plain: what a line of plain text is: the tab-separated turns of a dialogue, or running text.

    Raises:
        RecordError: a record that cannot be read; file, line, reason and what was expected.
    """
    path = Path(path)
    try:
        with _open(path) as file:
            yield from _records(path, file, rejects, plain)
    except FileNotFoundError:
        raise RecordError(path, 0, "no such file") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise RecordError(path, 0, f"damaged gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(path, 0, f"not UTF-8 ({error}); convert it, e.g. iconv -f gb18030 -t utf-8") from None


def _open(path: Path) -> TextIO:
    # Python's own newlines: \n, \r\n and \r. Never str.splitlines, which also splits at U+2028.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _records(path: Path, file: TextIO, rejects: Rejects | None, plain: Plain) -> Iterator[Record]:
    read = _reader(path, file)
    if read is _plain_values:
        as_record: Callable[[Any, str], Record] = _dialogue_line if plain == "dialogue" else _text_line
    else:
        as_record = json_record
    for line, value in read(path, file):
        try:
            if isinstance(value, RecordError):
                raise value
            yield as_record(value, f"{path}:{line}")
        except RecordError as error:
            if rejects is None:
                raise
            rejects.errors.append(error)
        except ValueError as error:
            problem = RecordError(path, line, str(error))
            if rejects is None:
                raise problem from None
            rejects.errors.append(problem)


Values = Iterator[tuple[int, Any]]  # line number from 1, and what stands there; a RecordError where it is unreadable


def _reader(path: Path, file: TextIO) -> Callable[[Path, TextIO], Values]:
    """How to read the file, told from its name and its first line with something on it."""
    first = next((line for line in file if line.strip()), "").strip()
    file.seek(0)
    names_json = {".json", ".jsonl"} & set(path.suffixes)
    if not first or (not names_json and first[0] not in "[{"):
        return _plain_values
    try:
        whole_line = isinstance(json.loads(first), (dict, list))
    except json.JSONDecodeError:
        whole_line = False
    if first[0] == "[" and not (whole_line and ".jsonl" in path.suffixes) and (names_json or first in ("[", "[{")):
        return _array_values
    if whole_line or names_json:
        return _line_values
    return _plain_values  # a dialogue may begin with a bracket


def _plain_values(path: Path, file: TextIO) -> Values:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line


def _line_values(path: Path, file: TextIO) -> Values:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line.strip())
            except json.JSONDecodeError as error:
                yield number, RecordError(path, number, f"not JSON: {error.msg} at column {error.colno}")


def _array_values(path: Path, file: TextIO) -> Values:
    """The items of one JSON array, which is held in memory as text; larger data belongs in JSON lines."""
    text, decoder, end, line = file.read(), json.JSONDecoder(), 0, 1
    position = _skip(text, text.index("[") + 1)
    while position < len(text) and text[position] != "]":
        line += text.count("\n", end, position)
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise RecordError(path, error.lineno, f"not JSON: {error.msg} at column {error.colno}") from None
        yield line, value
        line += text.count("\n", position, end)
        position = _skip(text, end)
        if position < len(text) and text[position] == ",":
            position = _skip(text, position + 1)
        elif position >= len(text) or text[position] != "]":
            break
    if position >= len(text) or text[position] != "]":
        raise RecordError(path, text.count("\n", 0, position) + 1, "not JSON: the array does not end with ]")
    rest = _skip(text, position + 1)
    if rest < len(text):
        line = text.count("\n", 0, rest) + 1
        raise RecordError(path, line, "text after the end of the array; for one array a line name the file .jsonl")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _dialogue_line(line: str, where: str) -> Dialogue:
    # The whole line is stripped, so an empty first or last turn vanishes; an empty turn in the middle stays.
    return Dialogue(tuple(line.strip().split("\t")), where=where)


def _text_line(line: str, where: str) -> Text:
    return Text(line.strip("\r\n"), where)


FORMS = """one of
  {"turns" | "dialog" | "messages" | "conversations": [...]}, turns as text or as {"role", "content"} or {"from", "value"}
  {"instruction", "input", "output"}
  {"prompt", "response"}, {"prompt", "text"}, each with "prefix" and "system" if wanted
  {"prompt", "answers": [{"answer", "score"}, ...]}
  {"chosen", "rejected"} and "prompt", {"instruction", "input"} or {"conversations"}; answers as text or messages
  {"text"}"""
TURNS = ("turns", "dialog", "dialogue", "messages", "conversations", "conversation")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "client"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "counselor"), "assistant"),
    "system": "system",
}


def json_record(value: Any, where: str) -> Record:
    """The record that a JSON value stands for, see ``FORMS``; a ValueError says why it stands for none."""
    if isinstance(value, list):
        return _dialogue(value, "", where)
    if not isinstance(value, dict):
        raise ValueError(f"found {type(value).__name__}, expected {FORMS}")
    if "chosen" in value and "rejected" in value:
        return _preference(value, where)
    for key in TURNS:
        if isinstance(value.get(key), list):
            return _dialogue(value[key], _text(value, "system", ""), where)
    if "instruction" in value:
        return _instruction(value, where)
    if "prompt" in value:
        return _prompt(value, where)
    if "text" in value:
        return Text(_text(value, "text"), where)
    raise ValueError(f"keys {', '.join(map(repr, value)) or 'none'}; expected {FORMS}")


def _text(value: dict[str, Any], key: str, default: str | None = None) -> str:
    found = value.get(key, default)
    if found is None and default is not None:
        return default
    if not isinstance(found, str):
        raise ValueError(f"{key!r} must be text, found {'nothing' if found is None else type(found).__name__}")
    return found


def _dialogue(turns: list[Any], system: str, where: str) -> Dialogue:
    texts, roles = [], []
    for number, turn in enumerate(turns, 1):
        role, text = _turn(turn, number)
        if role == "system" and number == 1:
            system = text
            continue
        texts.append(text)
        roles.append(role)
    if not texts:
        raise ValueError("a dialogue without turns")
    if any(roles):
        for number, (before, after) in enumerate(pairwise(roles), 1):
            if before == after or "system" in (before, after):
                raise ValueError(f"turns {number} and {number + 1} are {before} and {after}; they must alternate")
        if roles[-1] != "assistant":
            raise ValueError(f"the last turn is the {roles[-1]}'s; the assistant's is to be learned from")
    return Dialogue(tuple(texts), system, where=where)


def _turn(turn: Any, number: int) -> tuple[str, str]:
    """Role ("" if turns carry none) and text."""
    if isinstance(turn, str):
        return "", turn
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number} is {type(turn).__name__}; expected text or an object")
    text = next((turn[key] for key in ("content", "value", "message", "text") if key in turn), None)
    if not isinstance(text, str):
        raise ValueError(f"turn {number} has no text under 'content' or 'value'")
    name = next((turn[key] for key in ("role", "from") if key in turn), "")
    if name and name not in ROLES:
        raise ValueError(f"turn {number} has the role {name!r}; known: {', '.join(ROLES)}")
    return ROLES[name] if name else "", text


def _instruction(value: dict[str, Any], where: str) -> Record:
    prompt = "\n".join(filter(None, (_text(value, "instruction"), _text(value, "input", ""))))
    response, system = _text(value, "output"), _text(value, "system", "")
    history = value.get("history") or []
    if history:
        if not all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in history):
            raise ValueError("'history' must be a list of [question, answer]")
        earlier = [turn for pair in history for turn in pair]
        return Dialogue((*earlier, prompt, response), system, where=where)
    return PromptResponse(prompt, response, system=system, where=where)


def _prompt(value: dict[str, Any], where: str) -> Record:
    prompt, prefix, system = _text(value, "prompt"), _text(value, "prefix", ""), _text(value, "system", "")
    if "answers" in value:
        return ScoredAnswers(prompt, _answers(value["answers"]), prefix, system, where, _history(value))
    for key in ("response", "text", "completion"):
        if key in value:
            return PromptResponse(prompt, _text(value, key), prefix, system, where)
    raise ValueError("'prompt' without 'response', 'text' or 'answers'")


def _preference(value: dict[str, Any], where: str) -> ScoredAnswers:
    said: list[Any] = []
    asked = value.get("prompt", value.get("question"))
    if isinstance(asked, list):
        said = asked
    elif asked is not None:
        said = [_text({"prompt": asked}, "prompt")]
    elif "instruction" in value:
        said = ["\n".join(filter(None, (_text(value, "instruction"), _text(value, "input", ""))))]
    else:
        said = next((value[key] for key in TURNS if isinstance(value.get(key), list)), [])
    sides = []
    for side in ("chosen", "rejected"):
        answer = value[side]
        if isinstance(answer, list):  # whole conversations that end in the answer
            *before, answer = answer or [""]
            said = said or before
        sides.append(_turn(answer, len(said) + 1)[1])
    turns = [_turn(turn, number) for number, turn in enumerate(said, 1)]
    system = _text(value, "system", "")
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    if not turns:
        raise ValueError("'chosen' and 'rejected' without what they answer: expected 'prompt', 'instruction' or turns")
    *history, prompt = (text for _, text in turns)
    answers = ((sides[0], 1.0), (sides[1], 0.0))
    return ScoredAnswers(prompt, answers, _text(value, "prefix", ""), system, where, tuple(history))


def _history(value: dict[str, Any]) -> tuple[str, ...]:
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, str) for turn in history):
        raise ValueError("'history' must be a list of the turns before the prompt")
    return tuple(history)


def _answers(answers: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(answers, list) or not answers:
        raise ValueError('\'answers\' must be a list of {"answer", "score"} with at least one of them')
    pairs = []
    for number, answer in enumerate(answers, 1):
        score = answer.get("score") if isinstance(answer, dict) else None
        if not isinstance(score, (int, float)) or isinstance(score, bool):
            raise ValueError(f'answer {number}: expected {{"answer": text, "score": number}}')
        pairs.append((_text(answer, "answer"), float(score)))
    return tuple(pairs)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records one a line, as JSON, or tab-separated if the name ends in .txt or .txt.gz; returns how many.

    Raises:
        RecordError: a record that tab-separated lines cannot hold without a change.
    """
    count = 0
    with record_writer(path) as write:
        for count, record in enumerate(records, 1):  # noqa: B007
            write(record)
    return count


@contextmanager
def record_writer(path: str | Path) -> Iterator[Callable[[Record], None]]:
    """``write_records`` for records that come one by one, e.g. to several files in turns."""
    path, count = Path(path), 0
    as_line = _as_tabs if ".txt" in path.suffixes else _as_json
    with replacing(path) as temporary, _created(temporary, path.suffix == ".gz") as file:

        def write(record: Record) -> None:
            nonlocal count
            count += 1
            try:
                file.write(as_line(record) + "\n")
            except ValueError as error:
                raise RecordError(path, count, str(error)) from None

        yield write


@contextmanager
def _created(path: Path, compressed: bool) -> Iterator[TextIO]:
    if not compressed:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        return
    # Neither a name nor a time goes into the file, so that the same records make the same bytes.
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
    ):
        yield file


def _as_tabs(record: Record) -> str:
    if not isinstance(record, Dialogue) or record.system:
        raise ValueError("tab-separated lines hold dialogues without a system text only; write .jsonl instead")
    line = "\t".join(record.turns)
    if any(mark in turn for turn in record.turns for mark in "\t\r\n"):
        raise ValueError("a turn holds a tab or a line break; replace it or write .jsonl instead")
    if line.strip() != line or not line:
        raise ValueError("white space at either end would be lost; strip it or write .jsonl instead")
    return line


def _as_json(record: Record) -> str:
    if isinstance(record, Text):
        value: dict[str, Any] = {"text": record.text}
    elif isinstance(record, Dialogue):
        value = {"turns": list(record.turns), "system": record.system}
    elif isinstance(record, PromptResponse):
        value = {k: getattr(record, k) for k in ("prompt", "response", "prefix", "system")}
    else:
        answers = [{"answer": answer, "score": score} for answer, score in record.answers]
        value = {"prompt": record.prompt, "answers": answers, "prefix": record.prefix, "system": record.system}
        value["history"] = list(record.history)
    optional = ("prefix", "system", "history")
    return json.dumps({k: v for k, v in value.items() if v or k not in optional}, ensure_ascii=False)
