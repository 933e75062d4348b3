"""Verifiers: pure functions that judge a reply, by the expected answer or by its form, without a model."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hanmo.errors import ConfigError, unknown
from hanmo.verify.choices import choice
from hanmo.verify.couplets import couplet
from hanmo.verify.json_schema import json_schema
from hanmo.verify.numbers import number
from hanmo.verify.texts import chinese, contains, exact, format, length, repetition

Record = Mapping[str, Any]
Scores = list[float | None]


@dataclass(frozen=True)
class Verifier:
    """A function of a reply; of one with a ``field`` the second argument is the text in that field of the record."""

    function: Callable[..., float | None]
    field: str | None = None


VERIFIERS = {
    "choice": Verifier(choice, "response"),
    "number": Verifier(number, "response"),
    "exact": Verifier(exact, "response"),
    "contains": Verifier(contains, "response"),
    "couplet": Verifier(couplet, "prompt"),
    "json": Verifier(json_schema),
    "format": Verifier(format),
    "length": Verifier(length),
    "repetition": Verifier(repetition),
    "chinese": Verifier(chinese),
}


def verifier(
    name: str, field: str | None = None, **options: Any
) -> Callable[[Sequence[str], Sequence[str], Sequence[Record]], Scores]:
    """A verifier as a function of prompts, replies and records, which returns a number for every reply, 1 for right.

    None where a record has nothing in ``field``, or nothing that the verifier understands. A list in it holds several
    answers, each of which is right. The field "prompt" of a record without one is the prompt as text.

    Raises:
        ConfigError: there is no such verifier, or it does not take the options.
        UnsupportedError: a package is missing.
    """
    if name not in VERIFIERS:
        raise ConfigError(unknown("verifier", name, VERIFIERS))
    found = VERIFIERS[name]
    parameters = list(inspect.signature(found.function).parameters.values())[1 + (found.field is not None) :]
    for option in options.keys() - {parameter.name for parameter in parameters}:
        allowed = [parameter.name for parameter in parameters] + ["field"] * (found.field is not None)
        raise ConfigError(f"{name}: {unknown('option', option, allowed)}" if allowed else f"{name}: has no options")
    if missing := [one.name for one in parameters if one.default is one.empty and one.name not in options]:
        raise ConfigError(f"{name}: needs {', '.join(missing)}")
    if field is not None and found.field is None:
        raise ConfigError(f"{name}: field: it judges the reply alone, without a field of the record")
    place, judge = field or found.field, found.function
    judge("春", *(["秋"] if place else []), **options)  # fails here if an option is wrong or a package is missing

    def score(prompts: Sequence[str], replies: Sequence[str], records: Sequence[Record]) -> Scores:
        if place is None:
            return [float(judge(reply, **options) or 0) for reply in replies]
        given = [
            record.get(place, prompt if place == "prompt" else None)
            for record, prompt in zip(records, prompts, strict=True)
        ]
        return [_best(judge, reply, value, place) for reply, value in zip(replies, given, strict=True)]

    return score


def _best(judge: Callable[..., float | None], reply: str, value: Any, field: str) -> float | None:
    answers = [_text(one, field) for one in (value if isinstance(value, list) else [value]) if one is not None]
    scores = [float(score) for answer in answers if (score := judge(reply, answer)) is not None]
    return max(scores, default=None)


def _text(value: Any, field: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"the record's {field!r} is {value!r:.40}; expected text, a number, or a list of these")
    return value if isinstance(value, str) else f"{Decimal(str(value)):f}"
