"""Finds texts of held-out files in training files, in any form of record."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from hanmo.data.prepare.dedup import near_pairs
from hanmo.data.prepare.normalisation import normalised
from hanmo.data.prepare.passages import GRAM, Passages
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text, iter_records

LONG = 12  # characters: shorter texts ("好的", "谢谢") come again without being a leak
BATCH = 1 << 16  # characters of training records searched at once


@dataclass(frozen=True)
class Leak:
    """A text of a held-out file that a training file also has: where both are, and how alike they are (1: the same).

    Attributes:
        kind: what the text is where it is held out: text, prompt, context, question (the last turn of a context),
            answer; or "nearly the same", a whole record.
        form: where it stands in training: "the same"; as "another turn" (of a dialogue, or a prompt for an answer);
            "inside" of something longer; "" of whole records.
    """

    kind: str
    where: str
    learned: str
    similarity: float
    text: str
    form: str = "the same"


@dataclass
class Leaks:
    held_out: int = 0  # records looked at
    learned: int = 0
    found: list[Leak] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Held-out records with at least one leak."""
        return len({leak.where for leak in self.found})


def find_contamination(
    train: Sequence[Path], held_out: Sequence[Path], near: float | None = 0.8, long: int = LONG
) -> Leaks:
    """Compare held-out files with training files. The held-out files are held in memory, the others are not.

    A leak is a text, prompt or context that is learned as one (as ``normalised`` compares; a dialogue of two turns is a
    prompt and its response), or an answer of ``long`` characters or more. It is also any of these, or the last question
    of a context, of ``long`` characters or more anywhere in a training record: as a turn of a dialogue, on the other
    side (a prompt as an answer), inside a longer turn or running text. A prompt, context, question or text that is a
    whole turn counts from two thirds of ``long`` on. Wrong answers count as learned, because a reward model sees them.
    Last, a leak is a whole record that is nearly the same as another. Each text is named once, in the closest form.

    Args:
        near: similarity from which whole records are nearly the same; None looks for equal texts only.
        long: characters, as ``normalised`` leaves them, from which a text counts wherever it stands; from 8 on inside.
    """
    result = Leaks()
    tested: list[tuple[str, str, str]] = []
    wholes: list[tuple[str, str]] = []
    for record in _records(held_out):
        result.held_out += 1
        tested += [(kind, record.where, text) for kind, text in _asked(record)]
        wholes.append((record.where, _whole(record)))
    search = _Search(tested, long)
    alike: dict[str, Leak] = {}
    place = ""

    def texts() -> Iterator[str]:
        nonlocal place
        for record in _records(train):
            result.learned += 1
            search.add(record)
            place = record.where
            yield _whole(record)
        search.finish()

    if near is None:
        for _ in texts():
            pass
    else:
        for _, known, similarity in near_pairs([text for _, text in wholes], texts(), near):
            where, text = wholes[known]
            alike.setdefault(where, Leak("nearly the same", where, place, similarity, text, ""))
    leaked = {leak.where for leak in search.found}
    result.found = [*search.found, *(leak for where, leak in alike.items() if where not in leaked)]
    return result


FORMS = ("the same", "another turn", "inside")  # the closest first
SAME, TURN, INSIDE = range(len(FORMS))  # indexes of FORMS


class _Search:
    """Searches the records that are added for held-out texts, given as (kind, place, text)."""

    def __init__(self, tested: Sequence[tuple[str, str, str]], long: int):
        self._tested = tested
        self._shortest = (0, long * 2 // 3, long)  # of each form
        self._numbers: dict[str, list[int]] = {}  # of the held-out texts that are the same when normalised
        for number, (_, _, text) in enumerate(tested):
            self._numbers.setdefault(normalised(text), []).append(number)
        self._known = [text for text in self._numbers if len(text) >= GRAM]
        self._passages = Passages(self._known)
        self._found: dict[int, tuple[int, str]] = {}  # number: form, place in training
        self._pieces: list[str] = []  # of training records, still to be searched
        self._about: list[tuple[str, set[tuple[int, int]]]] = []  # of each its record's place, and where its turns are
        self._starts = [0]  # of each, and of the next one

    @property
    def found(self) -> list[Leak]:
        """The leaks in the order of the held-out texts; a question is left out if its whole context leaks."""
        found, contexts = [], set()
        for number, (kind, where, text) in enumerate(self._tested):
            if number in self._found and not (kind == "question" and where in contexts):
                form, learned = self._found[number]
                found.append(Leak(kind, where, learned, 1.0, text, FORMS[form]))
                contexts |= {where} if kind == "context" else set()
        return found

    def add(self, record: Record) -> None:
        """Search a training record: for equal texts now, for others once ``BATCH`` characters are collected."""
        asked, others = _sides(record)
        side = "text" if isinstance(record, Text) else "answer"
        for text, role in [("".join(asked), "asked"), *((text, side) for text in others)]:
            for number in self._numbers.get(text, ()):
                if _ROLES[self._tested[number][0]] == role:
                    self._note(number, SAME, len(text), record.where)
        for turns in (asked, *([text] for text in others)):
            ends = list(accumulate(map(len, turns)))
            self._pieces.append("".join(turns))
            self._about.append((record.where, set(zip([0, *ends], ends, strict=False))))
            self._starts.append(self._starts[-1] + len(self._pieces[-1]) + 1)
        if self._starts[-1] >= BATCH:
            self.finish()

    def finish(self) -> None:
        """Search the records collected so far."""
        for known, first in self._passages.inside("\n".join(self._pieces)):  # no normalised text has a line break
            piece = bisect_right(self._starts, first) - 1
            where, turns = self._about[piece]
            text, begins = self._known[known], first - self._starts[piece]
            form = TURN if (begins, begins + len(text)) in turns else INSIDE
            if form == INSIDE and _cuts(self._pieces[piece], begins, begins + len(text)):
                continue
            for number in self._numbers[text]:
                self._note(number, form, len(text), where)
        self._pieces, self._about, self._starts = [], [], [0]

    def _note(self, number: int, form: int, length: int, where: str) -> None:
        needed = self._shortest[INSIDE if self._tested[number][0] == "answer" else form]
        if length >= max(needed, 1) and form < self._found.get(number, (len(FORMS), ""))[0]:
            self._found[number] = form, where


_WORD = "0123456789abcdefghijklmnopqrstuvwxyz"
_SIGNS = _WORD + "%‰.,:/*#+-_@&\\=<>^~×÷−$¥€£°′"


def _cuts(text: str, first: int, end: int) -> bool:
    """Whether text[first:end] begins or ends within a number or a Latin word: 5元 in -5元 or 15元, C in C++."""
    before, after = text[max(first - 1, 0) : first], text[end : end + 1]
    return (text[first] in _WORD and before != "" and before in _SIGNS) or (
        text[end - 1] in _WORD and after != "" and after in _SIGNS
    )


_ROLES = {"text": "text", "prompt": "asked", "context": "asked", "question": "", "answer": "answer"}


def _records(paths: Sequence[Path]) -> Iterator[Record]:
    return (record for path in paths for record in iter_records(path, plain="dialogue"))


def _asked(record: Record) -> Iterator[tuple[str, str]]:
    """The texts of a held-out record that must not be learned, each with its kind."""
    if isinstance(record, Text):
        yield "text", record.text
        return
    if isinstance(record, Dialogue):
        before, answer = record.turns[:-1], record.turns[-1]
    else:
        before = (*record.history, record.prompt) if isinstance(record, ScoredAnswers) else (record.prompt,)
        answer = record.best().response if isinstance(record, ScoredAnswers) else record.response
    if len(before) > 1:
        yield "context", "\n".join(before)
        yield "question", before[-1]
    elif before:
        yield ("context" if isinstance(record, Dialogue) else "prompt"), before[0]
    yield "answer", answer


def _sides(record: Record) -> tuple[list[str], list[str]]:
    """What a training record asks, turn by turn, and what it answers or says, normalised."""
    if isinstance(record, Text):
        return [], [normalised(record.text)]
    if isinstance(record, Dialogue):
        asked, answers = record.turns[:-1], [record.turns[-1]]
    elif isinstance(record, PromptResponse):
        asked, answers = (record.prompt,), [record.response]
    else:
        asked, answers = (*record.history, record.prompt), [text for text, _ in record.answers]
    return [normalised(turn) for turn in asked], [normalised(answer) for answer in answers]


def _whole(record: Record) -> str:
    if isinstance(record, Text):
        return record.text
    if isinstance(record, Dialogue):
        return "\n".join(record.turns)
    best = record if isinstance(record, PromptResponse) else record.best()
    return f"{best.prompt}\n{best.response}"
