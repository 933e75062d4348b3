"""The words of the built-in corpus, read from words.yaml."""

from __future__ import annotations

from typing import Any, NamedTuple

from hanmo.files import package_yaml


class City(NamedTuple):
    name: str
    sight: str
    food: str


class Capital(NamedTuple):
    place: str
    city: str


class Pair(NamedTuple):
    """Two words that answer each other: opposites, halves of a couplet, lines of a poem."""

    one: str
    other: str


class Thing(NamedTuple):
    """A thing and a property of it: its measure word, its colour, its price unit, its effect."""

    name: str
    mark: str


def _words() -> dict[str, list[Any]]:
    groups = package_yaml("hanmo.demo.corpus", "words.yaml")
    words = {name: text.split() if isinstance(text, str) else list(text) for name, text in groups.pop("plain").items()}
    for entry in (Pair, Thing, City, Capital):
        for name, text in groups[entry.__name__].items():
            words[name] = [entry(*item.split("/")) for item in text.split()]
    return words


WORDS = _words()
