"""A record as the lists of turns that cleaning judges, and the record with some of them changed or removed."""

from collections.abc import Sequence
from dataclasses import replace

from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text


def views(record: Record) -> list[list[str]]:
    """One list of turns; of scored answers one for each answer: the prompt and the answer."""
    if isinstance(record, Text):
        return [[record.text]]
    if isinstance(record, Dialogue):
        return [list(record.turns)]
    if isinstance(record, PromptResponse):
        return [[record.prompt, record.response]]
    return [[record.prompt, answer] for answer, _ in record.answers]


def rebuilt(record: Record, kept: Sequence[list[str] | None]) -> Record | None:
    """The record with its views as they are now (None: removed); None if none is left."""
    left = [turns for turns in kept if turns is not None]
    if not left:
        return None
    turns = left[0]
    if isinstance(record, Text):
        return replace(record, text=turns[0])
    if isinstance(record, Dialogue):
        return replace(record, turns=tuple(turns))
    if isinstance(record, PromptResponse):
        return replace(record, prompt=turns[0], response=turns[1])
    pairs = zip(kept, record.answers, strict=True)
    answers = tuple((turns[1], score) for turns, (_, score) in pairs if turns is not None)
    return replace(record, prompt=turns[0], answers=answers)


def whole(record: Record) -> str:
    """The text by which records are compared: of scored answers the prompt and the best answer."""
    return "\n".join(views(record.best() if isinstance(record, ScoredAnswers) else record)[0])
