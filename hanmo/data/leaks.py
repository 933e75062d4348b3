"""Whether what a model is tested on lies in what it learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hanmo.data.dedup import near_pairs
from hanmo.data.splits import fingerprint
from hanmo.records import Dialogue, PromptResponse, Record, Text, iter_records

LONG = 12  # characters: shorter texts ("好的", "谢谢") come again without being a leak


@dataclass(frozen=True)
class Leak:
    """A text of a held-out file that a training file also has: where both are, and how alike they are (1: the same)."""

    kind: str
    where: str
    learned: str
    similarity: float
    text: str


@dataclass
class Leaks:
    held_out: int = 0  # records looked at
    learned: int = 0
    found: list[Leak] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Held-out records with at least one leak."""
        return len({leak.where for leak in self.found})


def find_leaks(train: Sequence[Path], held_out: Sequence[Path], near: float | None = 0.8, long: int = LONG) -> Leaks:
    """Compare held-out files with training files. The held-out files are held in memory, the others are not.

    A leak is a text, a whole dialogue, a dialogue's context or a prompt that is the same on both sides (width, case,
    white space and punctuation aside), or the same answer of ``long`` characters or more, or a whole record that is
    nearly the same. Wrong answers count as learned, because a reward model sees them.

    Args:
        near: similarity from which whole records are nearly the same; None looks for equal texts only.
        long: characters from which an answer counts by itself.
    """
    result = Leaks()
    tested: dict[tuple[str, int], list[tuple[str, str]]] = {}
    wholes: list[tuple[str, str]] = []
    for record in (record for path in held_out for record in iter_records(path, plain="dialogue")):
        result.held_out += 1
        for kind, text in _texts(record, long, tested=True):
            tested.setdefault((kind, fingerprint(text)), []).append((record.where, text))
        wholes.append((record.where, _whole(record)))
    exact: set[tuple[str, str]] = set()  # kind and place of what has been found
    leaked: set[str] = set()

    def learned() -> Iterator[tuple[str, str]]:
        for record in (record for path in train for record in iter_records(path, plain="dialogue")):
            result.learned += 1
            for kind, text in _texts(record, long, tested=False):
                for where, held in tested.get((kind, fingerprint(text)), ()):
                    if (kind, where) not in exact:
                        exact.add((kind, where))
                        leaked.add(where)
                        result.found.append(Leak(kind, where, record.where, 1.0, held))
            yield record.where, _whole(record)

    if near is None:
        for _ in learned():
            pass
        return result
    places: list[str] = []

    def texts() -> Iterator[str]:
        for where, whole in learned():
            places.append(where)
            yield whole

    for number, known, alike in near_pairs([text for _, text in wholes], texts(), near):
        where, text = wholes[known]
        if where not in leaked:
            leaked.add(where)
            result.found.append(Leak("nearly the same", where, places[number], alike, text))
    return result


def _texts(record: Record, long: int, tested: bool) -> Iterator[tuple[str, str]]:
    """The texts of a record that must not lie on both sides, each with its kind."""
    if isinstance(record, Text):
        yield "text", record.text
        return
    if isinstance(record, Dialogue):
        yield "context", "\n".join(record.turns[:-1])
        answers = [record.turns[-1]]
    elif isinstance(record, PromptResponse):
        yield "prompt", record.prompt
        answers = [record.response]
    else:
        yield "prompt", record.prompt
        answers = [record.best().response] if tested else [text for text, _ in record.answers]
    yield from (("answer", answer) for answer in answers if len(answer) >= long)


def _whole(record: Record) -> str:
    if isinstance(record, Text):
        return record.text
    if isinstance(record, Dialogue):
        return "\n".join(record.turns)
    best = record if isinstance(record, PromptResponse) else record.best()
    return f"{best.prompt}\n{best.response}"
