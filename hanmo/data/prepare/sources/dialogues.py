"""Dialogues: KdConv, LCCC, CrossWOZ, and chats in the form of ShareGPT."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hanmo.data.prepare.sources.reading import Item, Reading, files, members, values
from hanmo.records import TURNS as KEYS
from hanmo.records import Dialogue, json_record


def kdconv(place: Path, reading: Reading) -> Iterator[Item]:
    """An array of ``{"name", "messages": [{"message"}, …]}``; the knowledge of a turn is left out."""
    for path in files(place, "*.json", "*.json.gz"):
        if path.name.startswith("kb_"):
            reading.drop("a file of a knowledge base")
            continue
        for line, _, dialogue in members(path):
            yield from _spoken(path, line, dialogue, "message", reading)


def crosswoz(place: Path, reading: Reading) -> Iterator[Item]:
    """An object, or an array, of ``{"messages": [{"content"}, …]}``; plain, .gz or the published .zip."""
    for path in files(place, "*.json", "*.json.gz", "*.json.zip"):
        for line, _, dialogue in members(path):
            yield from _spoken(path, line, dialogue, "content", reading)


def _spoken(path: Path, line: int, dialogue: Any, key: str, reading: Reading) -> Iterator[Item]:
    messages = dialogue.get("messages") if isinstance(dialogue, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) and isinstance(m.get(key), str) for m in messages):
        reading.bad(path, line, f'expected {{"messages": [{{"{key}": text}}, ...]}}')
        return
    yield from _dialogue([message[key] for message in messages], path, line, reading)


def _dialogue(turns: Sequence[str], path: Path, line: int, reading: Reading) -> Iterator[Item]:
    """A dialogue, with tabs and line breaks as spaces, so that it fits on a line; the first turn decides the split."""
    texts = [" ".join(turn.split()) for turn in turns]
    if len(texts) < 2:
        reading.drop("a dialogue without a reply")
    elif not all(texts):
        reading.drop("a dialogue with an empty turn")
    else:
        yield Item(Dialogue(tuple(texts), where=f"{path}:{line}"), texts[0])


def lccc(place: Path, reading: Reading) -> Iterator[Item]:
    """Lists of turns, as JSON lines, one array, or an object with an array for each part; characters are separated."""
    for path in files(place, "*.json*"):
        for line, value in _lccc_values(path, reading):
            if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
                yield from _dialogue([unspaced(turn) for turn in value], path, line, reading)
            else:
                reading.bad(path, line, "expected a list of turns")


def _lccc_values(path: Path, reading: Reading) -> Iterator[tuple[int, Any]]:
    if ".jsonl" in path.suffixes:
        yield from values(path, reading)
        return
    for line, key, value in members(path):
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


def chat(place: Path, reading: Reading) -> Iterator[Item]:
    """``{"conversations": [{"from", "value"}, …]}`` or ``{"messages": [{"role", "content"}, …]}`` and their like.

    What the user says last, without a reply, is cut off, as is what the assistant says before the user. Turns in a
    row by the same speaker are bad.
    """
    for path in files(place, "*.json*"):
        for line, value in values(path, reading):
            try:
                key = next((key for key in KEYS if isinstance(value, dict) and isinstance(value.get(key), list)), None)
                if key is None:
                    raise ValueError(f"expected an object with one of {', '.join(KEYS)}")
                turns = _between(value[key])
                if not turns:
                    reading.drop("a dialogue without a reply")
                    continue
                record = json_record({**value, key: turns}, f"{path}:{line}")
            except ValueError as error:
                reading.bad(path, line, str(error))
                continue
            assert isinstance(record, Dialogue)
            yield Item(record, record.turns[0])


_USER, _ASSISTANT = (
    ("user", "human", "prompter", "client"),
    ("assistant", "gpt", "chatgpt", "bot", "model", "counselor"),
)


def _between(turns: list[Any]) -> list[Any]:
    """The system text, and the turns from the user's first to the assistant's last; [] where there is no reply."""

    def role(turn: Any) -> str:
        return str(turn.get("role", turn.get("from", ""))) if isinstance(turn, dict) else ""

    system = turns[:1] if turns and role(turns[0]) == "system" else []
    said = turns[len(system) :]
    if not any(map(role, said)):
        return turns if len(said) > 1 else []
    first = next((number for number, turn in enumerate(said) if role(turn) not in _ASSISTANT), len(said))
    last = next((number for number in range(len(said), 0, -1) if role(said[number - 1]) not in _USER), 0)
    return [*system, *said[first:last]] if last > first + 1 else []


def replies(dialogue: Dialogue) -> Iterator[Dialogue]:
    """One record for every reply of a dialogue: the turns up to it (the form of EVA's KdConv files)."""
    for number in range(2, len(dialogue.turns) + 1):
        yield Dialogue(dialogue.turns[:number], dialogue.system, dialogue.where)
