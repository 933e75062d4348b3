"""Prompts to generate from: those of a file, and the context of one for a model."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hanmo.errors import RecordError, UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.files import data_of
from hanmo.records import TURNS, Dialogue, Record, ScoredAnswers, Text, json_record, opened_text, text_lines
from hanmo.rows import Context


def read_prompts(path: Path) -> Iterator[tuple[str, Record]]:
    """The lines of a file and their records: a prompt in text, or a JSON object.

    The object is a record in any form (its response is not used), text to continue, or a dialogue that ends with the
    user's turn. RecordError for a line that is none of these, no lines, or no such file.
    """
    number = 0
    with opened_text(path, errors="surrogateescape") as file:
        for number, line in text_lines(path, file):
            if isinstance(line, RecordError):
                raise line
            line = line.rstrip("\n")
            yield line, _json_prompt(line, path, number) if line.lstrip()[0] == "{" else Text(line, f"{path}:{number}")
    if not number:
        raise RecordError(path, 0, "no prompts; expected one a line")


def _json_prompt(line: str, path: Path, number: int) -> Record:
    try:
        value = data_of(line)
        record = json_record(value, f"{path}:{number}", waiting=True)
    except json.JSONDecodeError as error:
        raise RecordError(path, number, f"not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:
        raise RecordError(path, number, str(error)) from None
    if isinstance(record, ScoredAnswers):
        record = record.ending("")
    elif isinstance(record, Dialogue):
        turns: list[Any] = next((value[key] for key in TURNS if isinstance(value.get(key), list)), [{}])
        if not any(isinstance(turn, dict) for turn in turns):
            return record  # without roles the last turn is the user's
    if isinstance(record, Dialogue):
        if record.turns[-1]:
            raise RecordError(path, number, "the last turn is not the user's; expected one that is to be answered")
        return replace(record, turns=record.turns[:-1])
    return record


def as_context(opened: OpenedModel, record: Record, limit: int) -> Context:
    """The context of a record; plain text is a user's turn for models of dialogues only."""
    try:
        return opened.family.context(record, limit)
    except UnsupportedError:
        if not isinstance(record, Text):
            raise
        return opened.family.context(Dialogue((record.text,), where=record.where), limit)
