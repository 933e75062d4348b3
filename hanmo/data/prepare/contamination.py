"""Finds texts of held-out files in training files, in any form of record."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path

from hanmo.data.prepare.dedup import NearTexts
from hanmo.data.prepare.normalisation import normalised
from hanmo.data.prepare.passages import GRAM, Passages
from hanmo.data.prepare.views import whole
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text, iter_records

LONG = 12  # characters: shorter texts ("好的", "谢谢") recur by chance
BATCH = 1 << 16  # characters of training records searched at once
FORMS = ("the same", "another turn", "inside")  # the closest first
SAME, TURN, INSIDE = range(len(FORMS))  # indexes of FORMS
# The role that a held-out text of each kind has in a record; an equal text in the same role is an overlap.
_ROLES = {"text": "text", "prompt": "prompt", "context": "prompt", "question": "", "answer": "answer"}


@dataclass(frozen=True)
class Overlap:
    """A text of a held-out file that also occurs in a training file.

    ``kind``: its role in the held-out record: text, prompt, context, question (the last turn of a context), answer; or
    "nearly the same", a whole record. ``form``: its place in training: "the same"; as "another turn" (of a dialogue, or
    a prompt for an answer); "inside" of something longer; "" of whole records.
    """

    kind: str
    where: str  # the held-out record, "file:line"
    train: str  # the training record, likewise
    similarity: float  # 1 for equal texts
    text: str
    form: str = "the same"


@dataclass
class Contamination:
    """The overlaps, and the numbers of records compared."""

    held_out: int = 0
    train: int = 0
    found: list[Overlap] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Held-out records with at least one overlap."""
        return len({overlap.where for overlap in self.found})


def find_contamination(
    train: Sequence[Path], held_out: Sequence[Path], near: float | None = 0.8, long: int = LONG
) -> Contamination:
    """Compare held-out files, which are held in memory, with training files.

    Overlaps, each reported once, in the closest form:

    - a text, prompt or context that a training record has in the same role (compared as ``normalised``; a dialogue of
      two turns is a prompt and its response), or an answer of ``long`` characters or more. Wrong answers count, because
      a reward model is trained on them;
    - any of these, or the last question of a context, of ``long`` characters or more (and 8 or more) anywhere in a
      training record; as a whole turn that is no answer, from two thirds of ``long`` on;
    - a whole record whose similarity to another one is ``near`` or more, unless that is None.
    """
    result = Contamination()
    texts: list[tuple[str, str, str]] = []
    records: list[tuple[str, str]] = []
    for record in chain.from_iterable(map(iter_records, held_out)):
        texts += [(kind, record.where, text) for kind, text in _held_out_texts(record)]
        records.append((record.where, whole(record)))
    result.held_out = len(records)
    search = _Search(texts, long)
    known = NearTexts(text for _, text in records if near is not None)
    similar: dict[str, Overlap] = {}
    for record in chain.from_iterable(map(iter_records, train)):
        result.train += 1
        search.add(record)
        if near is not None:
            number, similarity = known.nearest(whole(record))
            if similarity >= near:
                where, text = records[number]
                similar.setdefault(where, Overlap("nearly the same", where, record.where, similarity, text, ""))
    search.finish()
    equal = {overlap.where for overlap in search.found}
    result.found = [*search.found, *(overlap for where, overlap in similar.items() if where not in equal)]
    return result


class _Search:
    """Searches training records for held-out texts, given as (kind, "file:line", text)."""

    def __init__(self, texts: Sequence[tuple[str, str, str]], long: int):
        self._texts = texts
        self._shortest = (0, long * 2 // 3, long)  # of each form
        self._numbers: dict[str, list[int]] = {}  # of the held-out texts that are the same when normalised
        for number, (_, _, text) in enumerate(texts):
            self._numbers.setdefault(normalised(text), []).append(number)
        self._known = [text for text in self._numbers if len(text) >= GRAM]
        self._passages = Passages(self._known)
        self._found: dict[int, tuple[int, str]] = {}  # number: form, training record
        self._pieces: list[str] = []  # of training records, still to be searched
        self._origins: list[tuple[str, set[tuple[int, int]]]] = []  # of each piece: its record, and where its turns are
        self._starts = [0]  # of each piece, and of the next one

    @property
    def found(self) -> list[Overlap]:
        """The overlaps in the order of the held-out texts; a question is left out if its whole context is found."""
        found, contexts = [], set()
        for number, (kind, where, text) in enumerate(self._texts):
            if number in self._found and not (kind == "question" and where in contexts):
                form, train = self._found[number]
                found.append(Overlap(kind, where, train, 1.0, text, FORMS[form]))
                contexts |= {where} if kind == "context" else set()
        return found

    def add(self, record: Record) -> None:
        """Search a training record: for equal texts now, for others once ``BATCH`` characters are collected."""
        prompt, answers = _prompt_and_answers(record)
        prompt, answers = [normalised(turn) for turn in prompt], [normalised(answer) for answer in answers]
        role = "text" if isinstance(record, Text) else "answer"
        for text, its_role in [("".join(prompt), "prompt"), *((answer, role) for answer in answers)]:
            for number in self._numbers.get(text, ()):
                if _ROLES[self._texts[number][0]] == its_role:
                    self._note(number, SAME, len(text), record.where)
        for turns in (prompt, *([answer] for answer in answers)):
            ends = list(accumulate(map(len, turns)))
            self._pieces.append("".join(turns))
            self._origins.append((record.where, set(zip([0, *ends], ends, strict=False))))
            self._starts.append(self._starts[-1] + len(self._pieces[-1]) + 1)
        if self._starts[-1] >= BATCH:
            self.finish()

    def finish(self) -> None:
        """Search the records collected so far."""
        for known, first in self._passages.inside("\n".join(self._pieces)):  # no normalised text has a line break
            piece = bisect_right(self._starts, first) - 1
            where, turns = self._origins[piece]
            text, begins = self._known[known], first - self._starts[piece]
            form = TURN if (begins, begins + len(text)) in turns else INSIDE
            if form == INSIDE and _cuts(self._pieces[piece], begins, begins + len(text)):
                continue
            for number in self._numbers[text]:
                self._note(number, form, len(text), where)
        self._pieces, self._origins, self._starts = [], [], [0]

    def _note(self, number: int, form: int, length: int, where: str) -> None:
        needed = self._shortest[INSIDE if self._texts[number][0] == "answer" else form]
        if length >= max(needed, 1) and form < self._found.get(number, (len(FORMS), ""))[0]:
            self._found[number] = form, where


_WORD = frozenset("0123456789abcdefghijklmnopqrstuvwxyz")
_WITHIN = _WORD | set("%‰.,:/*#+-_@&\\=<>^~×÷−$¥€£°′·")


def _cuts(text: str, first: int, end: int) -> bool:
    """Whether text[first:end] begins or ends within a number or a Latin word: 5元 in -5元 or 15元, .5 in 3.5, C in C++."""
    beside = (text[max(first - 1, 0) : first + 1], text[end - 1 : end + 1])
    return any(len(two) == 2 and set(two) <= _WITHIN and not _WORD.isdisjoint(two) for two in beside)


def _held_out_texts(record: Record) -> Iterator[tuple[str, str]]:
    """Kind and text of everything in a held-out record that must not be trained on."""
    prompt, answers = _prompt_and_answers(record)
    if isinstance(record, Text):
        yield "text", record.text
        return
    if len(prompt) > 1:
        yield "context", "\n".join(prompt)
        yield "question", prompt[-1]
    elif prompt:
        yield ("context" if isinstance(record, Dialogue) else "prompt"), prompt[0]
    yield "answer", record.best().response if isinstance(record, ScoredAnswers) else answers[0]


def _prompt_and_answers(record: Record) -> tuple[Sequence[str], Sequence[str]]:
    """The turns before the answer, and the answers, or the text."""
    if isinstance(record, Text):
        return (), (record.text,)
    if isinstance(record, Dialogue):
        return record.turns[:-1], record.turns[-1:]
    if isinstance(record, PromptResponse):
        return (record.prompt,), (record.response,)
    return (*record.history, record.prompt), [text for text, _ in record.answers]
