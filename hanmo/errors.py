"""The exceptions for users' mistakes, and the form of their messages; see "Style" in CONTRIBUTING.md."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path


class HanmoError(ValueError):
    """A user's mistake: the command line prints the message alone, without a traceback, and exits with 2."""


class ConfigError(HanmoError):
    """An unknown or impossible setting."""


class RecordError(HanmoError):
    """A bad record; the message starts with ``file:line``, or the file alone where ``line`` is 0."""

    def __init__(self, path: str | Path, line: int, problem: str):
        super().__init__(f"{path}:{line}: {problem}" if line else f"{path}: {problem}")
        self.path, self.line, self.problem = str(path), line, problem

    @classmethod
    def at(cls, where: str, problem: str) -> RecordError:
        """The error of the record at ``where``: "file:line", or any other place that its maker gave it."""
        file, _, line = where.rpartition(":")
        return cls(file, int(line), problem) if line.isdecimal() else cls(where, 0, problem)


class CheckpointError(HanmoError):
    """A file of weights that is missing, partial, mis-shaped or needs code to be run."""


class VocabularyError(HanmoError):
    """Vocabulary, tokenizer and embedding disagree."""


class DivergedError(HanmoError):
    """A loss or a gradient of a training is not finite, or the loss has exploded."""


class NotANumberError(HanmoError):
    """A model computes NaN or infinity, or a result that is to be written as JSON holds one."""


class InUseError(HanmoError):
    """Another run writes to the same place; the message names it."""


class UnsupportedError(HanmoError):
    """Something hanmo does not do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest known ones, or all of them.

    >>> unknown("key", "learning_rat", ["learning_rate", "epochs"])
    "unknown key 'learning_rat': did you mean learning_rate?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return f"unknown {kind} {name!r}: {hint}"


_FRAMES = re.compile(r"\(?(?:Exception raised from|frame #\d+:)")
_PROTECTION = re.compile(r"weights_only|safe_globals|trust|arbitrary code", re.I)


def reraise_out_of_memory(error: BaseException) -> None:
    """Raise the error again if memory did not suffice: that says nothing about what was tried."""
    if out_of_memory(error):
        raise error


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice; torch's allocator of CPU memory has no exception class of its own."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def quoted(error: BaseException) -> str:
    """The message of a library's exception in one line, ``without_advice``; the exception's name if nothing is left."""
    return without_advice(str(error)) or type(error).__name__


def without_advice(message: str) -> str:
    """A library's message in one line, without sentences on how to switch a protection off and without C++ frames.

    >>> without_advice("Cannot load a.bin. Set `weights_only` to `False` if you trust it.")
    'Cannot load a.bin.'
    """
    sentences = re.split(r"(?<=[.!?])\s+|\s*\n\s*", _FRAMES.split(message)[0].strip())
    return " ".join(sentence for sentence in sentences if not _PROTECTION.search(sentence)).strip()
