"""Dialogues: KdConv, LCCC, CrossWOZ, and chats in the form of ShareGPT."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hanmo.data.prepare.sources.reader import SourceReader, SourceRecord, json_source, matching_files
from hanmo.records import ROLES, TURNS, Dialogue, json_record


def kdconv(place: Path, reader: SourceReader) -> Iterator[SourceRecord]:
    """An array of ``{"name", "messages": [{"message"}, …]}``."""
    for path in matching_files(place, "*.json", "*.json.gz"):
        if path.name.startswith("kb_"):
            reader.drop("a file of a knowledge base")
        else:
            yield from _message_files(path, "message", reader)


def crosswoz(place: Path, reader: SourceReader) -> Iterator[SourceRecord]:
    """An object, or an array, of ``{"messages": [{"content"}, …]}``."""
    for path in matching_files(place, "*.json", "*.json.gz", "*.json.zip"):
        yield from _message_files(path, "content", reader)


def _message_files(path: Path, key: str, reader: SourceReader) -> Iterator[SourceRecord]:
    for line, _, dialogue in reader.json_members(path):
        messages = dialogue.get("messages") if isinstance(dialogue, dict) else None
        if isinstance(messages, list) and all(isinstance(m, dict) and isinstance(m.get(key), str) for m in messages):
            yield from _dialogue([message[key] for message in messages], path, line, reader)
        else:
            reader.bad(path, line, f'expected {{"messages": [{{"{key}": text}}, ...]}}')


def _dialogue(turns: Sequence[str], path: Path, line: int, reader: SourceReader) -> Iterator[SourceRecord]:
    # Tabs and line breaks become spaces, so that a dialogue fits on a line.
    texts = [" ".join(turn.split()) for turn in turns]
    if len(texts) < 2:
        reader.drop("a dialogue without a reply")
    elif not all(texts):
        reader.drop("a dialogue with an empty turn")
    else:
        yield SourceRecord(Dialogue(tuple(texts), where=f"{path}:{line}"), texts[0])


def lccc(place: Path, reader: SourceReader) -> Iterator[SourceRecord]:
    """Lists of turns, as JSON lines, one array, or an object with an array for each part; characters are separated."""
    for path in matching_files(place, "*.json*"):
        for line, value in _lccc_values(path, reader):
            if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
                yield from _dialogue([unspaced(turn) for turn in value], path, line, reader)
            else:
                reader.bad(path, line, "expected a list of turns")


def _lccc_values(path: Path, reader: SourceReader) -> Iterator[tuple[int, Any]]:
    if ".jsonl" in path.suffixes:
        yield from reader.json_values(path)
        return
    for line, key, value in reader.json_members(path):
        if key and isinstance(value, list):  # {"train": [...], "valid": [...]}
            yield from ((line, dialogue) for dialogue in value)
        else:
            yield line, value


_WORDS = re.compile(r"(?<=[A-Za-z]) +(?=[A-Za-z])")


def unspaced(text: str) -> str:
    """Text without the spaces between its characters; between Latin words one stays.

    >>> unspaced("我 用 Visual Studio 写 了 1 0 行")
    '我用Visual Studio写了10行'
    """
    return " ".join(piece.replace(" ", "") for piece in _WORDS.split(text.strip()))


@json_source
def chat(value: Any, where: str, reader: SourceReader) -> Iterator[SourceRecord]:
    """``{"conversations": [{"from", "value"}, …]}`` or ``{"messages": [{"role", "content"}, …]}`` and their like."""
    key = next((key for key in TURNS if isinstance(value, dict) and isinstance(value.get(key), list)), None)
    if key is None:
        raise ValueError(f"expected an object with one of {', '.join(TURNS)}")
    turns = _between(value[key])
    if not turns:
        reader.drop("a dialogue without a reply")
        return
    record = json_record({**value, key: turns}, where)
    assert isinstance(record, Dialogue)
    yield SourceRecord(record, record.turns[0])


def _between(turns: list[Any]) -> list[Any]:
    """The system text, and the turns from the user's first to the assistant's last; [] if there is no reply."""

    def role(turn: Any) -> str:
        name = str(turn.get("role", turn.get("from", ""))) if isinstance(turn, dict) else ""
        return ROLES.get(name, name)

    system = turns[:1] if turns and role(turns[0]) == "system" else []
    spoken = turns[len(system) :]
    if not any(map(role, spoken)):
        return turns if len(spoken) > 1 else []
    first = next((number for number, turn in enumerate(spoken) if role(turn) != "assistant"), len(spoken))
    last = next((number for number in range(len(spoken), 0, -1) if role(spoken[number - 1]) != "user"), 0)
    return [*system, *spoken[first:last]] if last > first + 1 else []
