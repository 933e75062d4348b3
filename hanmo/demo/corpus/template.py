"""The dialogue grammar: templates from templates.yaml and small_talk.yaml, and the choice of held-out combinations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hanmo.demo.corpus import derive
from hanmo.files import package_yaml

HELD_OUT = 8  # one in this many combinations is held out
_SALT = "3"  # with this seed all ten openings are trained on, and every topic has held-out dialogues
_END_MARKS = str.maketrans("", "", "。？！")


@dataclass(frozen=True)
class Template:
    """A kind of exchange.

    ``combination``: the slots whose values together are split into training and held-out; if empty, all and the form.
    """

    topic: str
    forms: tuple[str, ...]  # wordings; turns separated by ``|``, the user's first, with ``{slot}`` or ``{slot.field}``
    slots: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # the possible values of each slot
    derive: Callable[..., dict[str, Any] | None] | None = None  # further values for answers; None: they make no sense
    combination: tuple[str, ...] = ()
    weight: float = 1.0  # how often it is drawn, relative to the others

    def draw(self, rng: Random) -> Exchange:
        """One exchange, from training or held out, as its combination decides."""
        while True:
            chosen = {name: rng.choice(values) for name, values in self.slots.items()}
            derived = self.derive(**chosen) if self.derive else {}
            if derived is not None:
                break
        form = rng.choice(self.forms)
        turns = tuple(form.format(**chosen, **derived).split("|"))
        names = self.combination or (*self.slots, "form")
        key = "|".join([self.topic, self.forms[0], *(str({**chosen, "form": form}[name]) for name in names)])
        digest = hashlib.blake2b((_SALT + without_marks(key)).encode(), digest_size=8).digest()
        return Exchange(self.topic, turns, int.from_bytes(digest, "big") % HELD_OUT == 0)


@dataclass(frozen=True)
class Exchange:
    """Turns of one topic; ``held_out``: its combination never occurs in training."""

    topic: str
    turns: tuple[str, ...]
    held_out: bool


def without_marks(text: str) -> str:
    """The text without end marks, which users leave out, for comparing exchanges."""
    return text.translate(_END_MARKS)


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
    return [value for name in slot.split(" + ") for value in derive.WORDS[name]]


def _small_talk() -> Iterator[Template]:
    for entry in package_yaml("hanmo.demo.corpus", "small_talk.yaml"):
        for exchange in entry["exchanges"].splitlines():
            questions, answer = exchange.split("|")
            forms = tuple(f"{{opener}}{question}|{answer}" for question in questions.split())
            yield Template(entry["topic"], forms, {"opener": entry["openers"]}, weight=len(forms) * entry["weight"])


TEMPLATES = (*_templates(), *_small_talk())
