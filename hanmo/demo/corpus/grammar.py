"""The dialogue grammar: the templates of templates.yaml and small_talk.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hanmo.demo.corpus import derive
from hanmo.demo.corpus.template import Template
from hanmo.demo.corpus.words import WORDS
from hanmo.files import package_yaml


def _templates() -> Iterator[Template]:
    for entry in package_yaml("hanmo.demo.corpus", "templates.yaml"):
        yield Template(
            entry["topic"],
            tuple(entry["forms"].splitlines()),
            {name: _values(slot) for name, slot in entry["slots"].items()},
            getattr(derive, entry["derive"]) if "derive" in entry else None,
            tuple(entry.get("combination", ())),
            entry.get("weight", 1.0),
        )


def _values(slot: str) -> Sequence[Any]:
    if ".." in slot:
        first, last = map(int, slot.split(".."))
        return range(first, last + 1)
    return [value for name in slot.split(" + ") for value in WORDS[name]]


def _small_talk() -> Iterator[Template]:
    for entry in package_yaml("hanmo.demo.corpus", "small_talk.yaml"):
        for exchange in entry["exchanges"].splitlines():
            questions, answer = exchange.split("|")
            forms = tuple(f"{{opener}}{question}|{answer}" for question in questions.split())
            yield Template(entry["topic"], forms, {"opener": entry["openers"]}, weight=len(forms) * entry["weight"])


TEMPLATES = (*_templates(), *_small_talk())
