"""The types of records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanmo.errors import RecordError
from hanmo.files import json_text, write_text


@dataclass(frozen=True)
class Text:
    """Running text, for pretraining and perplexity."""

    text: str
    where: str = field(default="", compare=False)  # "file:line", for messages


@dataclass(frozen=True)
class Dialogue:
    """Turns of the user and the assistant, alternating. The last turn is the reply to learn or to generate.

    ``ids``: in a chat, the token ids of each generated turn, whose text is never tokenised again. ``label``: a thumb for
    the last turn, up (True) or down. ``fields``: all that the file says of a record, where it is read to be answered (as in
    the following types).
    """

    turns: tuple[str, ...]
    system: str = ""
    where: str = field(default="", compare=False)
    ids: tuple[tuple[int, ...] | None, ...] = field(default=(), compare=False)
    label: bool | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def described(self) -> dict[str, Any]:
        """The fields, and the last turn, if it is a reply, as "response"."""
        fields = self.fields or {"turns": list(self.turns)}
        return _with_response(fields, self.turns[-1] if len(self.turns) > 1 else "")

    def replies(self) -> Iterator[Dialogue]:
        """For every reply a dialogue that ends in it."""
        for end in range(2, len(self.turns) + 1):
            yield Dialogue(self.turns[:end], self.system, self.where)


@dataclass(frozen=True)
class PromptResponse:
    """One prompt and the response to learn; ``prefix`` ("答：") opens the response and is given, not learned.

    ``label``: a thumb for the response, up (True) or down.
    """

    prompt: str
    response: str
    prefix: str = ""
    system: str = ""
    where: str = field(default="", compare=False)
    label: bool | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def described(self) -> dict[str, Any]:
        """The fields, and the response as "response"."""
        return _with_response(self.fields or {"prompt": self.prompt}, self.response)


@dataclass(frozen=True)
class ScoredAnswers:
    """One prompt and (answer, score) pairs, a higher score being better; ``history``: the turns before the prompt."""

    prompt: str
    answers: tuple[tuple[str, float], ...]
    prefix: str = ""
    system: str = ""
    where: str = field(default="", compare=False)
    history: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def described(self) -> dict[str, Any]:
        """The fields, the best answer as "response", and all answers with their scores as "scores"."""
        scores = [{"answer": answer, "score": score} for answer, score in self.answers]
        fields = {**(self.fields or {"prompt": self.prompt}), "scores": scores}
        return _with_response(fields, self.best().response)

    def best(self) -> PromptResponse:
        """The best answer (the first of equals) as the response to a prompt of all turns, a line each."""
        answer = max(self.answers, key=lambda pair: pair[1])[0]
        prompt = "\n".join((*self.history, self.prompt))
        return PromptResponse(prompt, answer, self.prefix, self.system, self.where)

    def ending(self, answer: str) -> Dialogue | PromptResponse:
        """The record that ends in this answer: a dialogue if there is a history."""
        if self.history and not self.prefix:
            return Dialogue((*self.history, self.prompt, answer), self.system, self.where)
        return PromptResponse("\n".join((*self.history, self.prompt)), answer, self.prefix, self.system, self.where)


def _with_response(fields: Mapping[str, Any], response: str) -> dict[str, Any]:
    """A field "response" of the file's own stays where the record has no other reply."""
    return {**fields, "response": response or fields.get("response") or ""}


Record = Text | Dialogue | PromptResponse | ScoredAnswers


def unanswered(record: Record) -> str | None:
    """The reason why a record has no reply; None if it has one or is running text."""
    if isinstance(record, Text):
        return None
    if isinstance(record, Dialogue):
        if len(record.turns) < 2:
            return "a dialogue of one turn; expected a message and a reply to it"
        return None if record.turns[-1].strip() else "the last turn is empty; expected a reply"
    if isinstance(record, PromptResponse):
        return None if record.response.strip() else "the response is empty"
    return None if record.best().response.strip() else "the best answer is empty"


def unasked(record: Record) -> str | None:
    """The reason why a record is not a prompt to answer; None if it is one."""
    if isinstance(record, Text):
        return "running text is no prompt; expected dialogues or prompts"
    asked = (record.turns[:-1] or record.turns)[-1] if isinstance(record, Dialogue) else record.prompt + record.prefix
    return None if asked.strip() else "the prompt is empty"


@dataclass
class Rejects:
    """Bad records that were skipped; without ``skip_bad``, one that a family refuses raises an error instead."""

    errors: list[RecordError] = field(default_factory=list)
    skip_bad: bool = True

    def __len__(self) -> int:
        return len(self.errors)

    def add(self, where: str, problem: str) -> None:
        """Add the record at ``where`` ("file:line")."""
        self.errors.append(RecordError.at(where, problem))

    def add_bad(self, error: RecordError) -> None:
        """Add a record that a family refuses, or raise the error if bad records are not skipped."""
        if not self.skip_bad:
            raise error
        self.errors.append(error)

    def write(self, path: str | Path) -> None:
        """One JSON object a line: file, line, problem."""
        entries = [{"file": error.path, "line": error.line, "problem": error.problem} for error in self.errors]
        write_text(path, "".join(json_text(entry) + "\n" for entry in entries))
