"""Instructions and preferences: Alpaca, and pairs of a chosen and a rejected answer."""

from collections.abc import Iterator, Sequence
from typing import Any

from hanmo.data.prepare.sources.reader import SourceReader, SourceRecord, json_source, object_of, text_of
from hanmo.data.prepare.splits import split_key
from hanmo.records import TURNS, Dialogue, ScoredAnswers, json_record


@json_source
def alpaca(value: Any, where: str, reader: SourceReader) -> Iterator[SourceRecord]:
    """``{"instruction", "input", "output"}``, with "history" if any."""
    if "instruction" not in object_of(value):
        raise ValueError(f"no 'instruction'; the keys are {', '.join(value)}")
    if not text_of(value, "output").strip():
        reader.drop("no output")
        return
    record = json_record(value, where)
    yield SourceRecord(record, split_key(record))


@json_source
def preferences(value: Any, where: str, reader: SourceReader) -> Iterator[SourceRecord]:
    """Answers from the best to the worst: "chosen" and "rejected", or a list under "output".

    The prompt stands under "prompt", "instruction" (and "input", "history") or as a conversation, whose earlier turns
    become the history.
    """
    (*history, prompt), system = _prompt(object_of(value))
    answers = _ranked(value)
    if not prompt.strip() or not all(answer.strip() for answer in answers):
        reader.drop("no prompt" if not prompt.strip() else "an empty answer")
        return
    if len(set(answers)) < len(answers):
        reader.drop("answers that are the same")
        return
    scored = tuple((answer, float(len(answers) - 1 - rank)) for rank, answer in enumerate(answers))
    record = ScoredAnswers(prompt, scored, system=system, where=where, history=tuple(history))
    yield SourceRecord(record, (*history, prompt)[0])


def _prompt(value: dict[str, Any]) -> tuple[Sequence[str], str]:
    """The turns up to the prompt, and the system text."""
    for key in TURNS:
        if isinstance(value.get(key), list):
            # An empty turn is added because a dialogue ends with the assistant.
            record = json_record({key: [*value[key], {"role": "assistant", "content": ""}]}, "")
            assert isinstance(record, Dialogue)
            return record.turns[:-1], record.system or text_of(value, "system")
    if "instruction" in value:
        fields = {key: value[key] for key in ("instruction", "input", "history") if key in value}
        record = json_record({**fields, "output": ""}, "")
        turns = record.turns[:-1] if isinstance(record, Dialogue) else (split_key(record),)
        return turns, text_of(value, "system")
    if "prompt" in value or "question" in value:
        return (text_of(value, "prompt") or text_of(value, "question"),), text_of(value, "system")
    raise ValueError(f"no prompt; expected 'prompt', 'instruction' or 'conversations', found {', '.join(value)}")


def _ranked(value: dict[str, Any]) -> list[str]:
    if "chosen" in value and "rejected" in value:
        return [_answer(value["chosen"]), _answer(value["rejected"])]
    if isinstance(value.get("output"), list) and len(value["output"]) > 1:
        return [_answer(answer) for answer in value["output"]]
    raise ValueError("expected 'chosen' and 'rejected', or a list of two answers or more under 'output'")


def _answer(value: Any) -> str:
    if isinstance(value, list) and value:  # a whole conversation: the answer is its last turn
        value = value[-1]
    if isinstance(value, dict):
        value = value.get("value", value.get("content"))
    if not isinstance(value, str):
        raise ValueError(f"an answer must be text, found {type(value).__name__}")
    return value
