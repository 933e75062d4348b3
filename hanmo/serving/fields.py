"""The fields of a request, checked one by one: a null is not given, and what nobody has asked for is reported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from hanmo.files import check_characters
from hanmo.serving.errors import ApiError

BODY = 2 << 20  # bytes of a request
SHOWN = 20  # unknown fields that are named
_PLAIN = re.compile(r"[\w.-]{1,64}", re.ASCII)


def json_object(body: bytes, what: str = "the body") -> dict[str, Any]:
    """The JSON object of a request; ApiError for what is none, holds NaN or half a character, or is nested too deeply."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_number)
        check_characters(value, text)
    except RecursionError:
        raise ApiError(f"{what} is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ApiError(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise ApiError(f"{what} is not valid JSON: {str(error).partition(';')[0]}") from None
    if not isinstance(value, dict):
        raise ApiError(f"{what} must be a JSON object, found {kind(value)}")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def kind(value: Any) -> str:
    """The name of a value's type in JSON."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


class Fields:
    """The fields of an object; each method reads one, or gives its default if it is missing or null."""

    def __init__(self, values: dict[str, Any], where: str = ""):
        self._values = {name: value for name, value in values.items() if value is not None}
        self._where = where
        self._read: set[str] = set()

    def value(self, name: str) -> Any:
        """The value as it is; None if it is not given."""
        self._read.add(name)
        return self._values.get(name)

    def wrong(self, name: str, expected: str) -> NoReturn:
        found = self._values.get(name)
        shown = f" {found!r}" if isinstance(found, bool | int | float) else ""
        raise ApiError(f"{self._where}{name} must be {expected}, found {kind(found)}{shown[:40]}", self._where + name)

    def whole(self, name: str, low: int, high: int, default: Any = None) -> Any:
        """A whole number between ``low`` and ``high``."""
        if (value := self.value(name)) is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.wrong(name, f"a whole number between {low} and {high}")
        return value

    def number(self, name: str, low: float, high: float, default: Any = None) -> Any:
        """A finite number between ``low`` and ``high``, as a float."""
        if (value := self.value(name)) is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            self.wrong(name, f"a number between {low} and {high}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        if (value := self.value(name)) is None:
            return default
        if not isinstance(value, bool):
            self.wrong(name, "true or false")
        return value

    def text(self, name: str, longest: int = BODY) -> str | None:
        value = self.value(name)
        if value is not None and (not isinstance(value, str) or len(value) > longest):
            self.wrong(name, "a string" if longest == BODY else f"a string of at most {longest} characters")
        return value

    def texts(self, name: str, most: int, longest: int = BODY) -> list[str] | None:
        """A string, or a list of at most ``most`` strings, none of them empty, as a list."""
        if (value := self.value(name)) is None:
            return None
        found = [value] if isinstance(value, str) else value
        good = isinstance(found, list) and all(isinstance(one, str) and 0 < len(one) <= longest for one in found)
        if not good or len(found) > most:
            self.wrong(
                name, f"a string or at most {most} strings, none empty and none longer than {longest} characters"
            )
        return found

    def ids(self, name: str, vocabulary: int) -> list[int] | None:
        """A list of token ids."""
        value = self.value(name)
        if value is not None:
            self.require_ids(name, [value], vocabulary)
        return value

    def require_ids(self, name: str, lists: Sequence[Any], vocabulary: int) -> None:
        """ApiError unless every one of these is a list of ids; it names the first thing that is no id."""
        for ids in lists:
            if not isinstance(ids, list):
                self.wrong(name, f"a list of token ids between 0 and {vocabulary - 1}")
            if strange := [id_ for id_ in ids if not are_ids([id_], vocabulary)]:
                shown = str(strange[0])[:40] if type(strange[0]) in (int, float) else kind(strange[0])
                problem = f"{self._where}{name} holds {shown}; token ids are between 0 and {vocabulary - 1}"
                raise ApiError(problem, self._where + name)

    def inner(self, name: str) -> Fields:
        """The fields of an object in a field."""
        value = self.value(name)
        if value is not None and not isinstance(value, dict):
            self.wrong(name, "an object")
        return Fields(value or {}, f"{self._where}{name}.")

    def given(self, *names: str) -> list[str]:
        """Those of the names that are given."""
        return [name for name in names if self.value(name) is not None]

    def ignored(self, known: Collection[str]) -> list[str]:
        """The fields that nobody has read and that are not ``known``, as far as their names can stand in a header."""
        names = sorted(set(self._values) - self._read - set(known))
        return [name for name in names if _PLAIN.fullmatch(name)][:SHOWN]


def are_ids(value: Any, vocabulary: int) -> bool:
    """Whether a value is a list of ids of a vocabulary of this size."""
    return isinstance(value, list) and all(type(id_) is int and 0 <= id_ < vocabulary for id_ in value)


def json_float(value: float) -> float:
    """A log-probability as JSON can hold it: -9999.0 stands for minus infinity."""
    assert not math.isnan(value)
    return max(value, -9999.0)
