"""Instructions and preferences: Alpaca, and pairs of a chosen and a rejected answer."""

from collections.abc import Iterator
from typing import Any

from hanmo.data.prepare.sources.reader import SourceReader, SourceRecord, json_source, object_of, text_of
from hanmo.data.prepare.views import views
from hanmo.records import TURNS, Dialogue, PromptResponse, ScoredAnswers, json_record


@json_source
def alpaca(value: Any, where: str, reader: SourceReader) -> Iterator[SourceRecord]:
    """``{"instruction", "input", "output"}``, with "history" if any."""
    if "instruction" not in object_of(value):
        raise ValueError(f"no 'instruction'; the keys are {', '.join(value)}")
    if not text_of(value, "output").strip():
        reader.drop("no output")
        return
    record = json_record(value, where)
    yield SourceRecord(record, views(record)[0][0])


@json_source
def preferences(value: Any, where: str, reader: SourceReader) -> Iterator[SourceRecord]:
    """Answers from the best to the worst: "chosen" and "rejected", or a list under "output"."""
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


def _prompt(value: dict[str, Any]) -> tuple[list[str], str]:
    """The turns up to the prompt, and the system text."""
    if turns := next((key for key in TURNS if isinstance(value.get(key), list)), None):
        # An empty turn is added because a dialogue ends with the assistant.
        record = json_record({turns: [*value[turns], {"role": "assistant", "content": ""}]}, "")
    elif "instruction" in value:
        fields = {key: value[key] for key in ("instruction", "input", "history") if key in value}
        record = json_record({**fields, "output": ""}, "")
    elif "prompt" in value or "question" in value:
        record = PromptResponse(text_of(value, "prompt") or text_of(value, "question"), "")
    else:
        raise ValueError(f"no prompt; expected 'prompt', 'instruction' or 'conversations', found {', '.join(value)}")
    assert isinstance(record, Dialogue | PromptResponse)
    return views(record)[0][:-1], record.system or text_of(value, "system")


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
