"""Preference pairs: replies that ask back where people do, and factual answers without an addition.

The corpus only answers, so fine-tuning has not taught this. A pair is the same reply with and without a question.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from hanmo.demo.corpus.template import Exchange
from hanmo.files import package_yaml

_RULES = package_yaml("hanmo.demo", "manners.yaml")
_ASKING = [(topic, re.compile(reply), question) for topic, reply, question in _RULES["asking"]]
_QUESTIONS = tuple(dict.fromkeys(question for _, _, question in _ASKING))


@dataclass(frozen=True)
class Pair:
    """The turns of a dialogue, and its reply with and without a question at the end; ``asks``: the better one asks."""

    context: tuple[str, ...]
    chosen: str
    rejected: str
    asks: bool

    def as_dict(self) -> dict[str, object]:
        return {"prompt": list(self.context), "chosen": self.chosen, "rejected": self.rejected}


def question_after(topic: str, reply: str) -> str | None:
    """A natural question after this reply."""
    return next((question for named, form, question in _ASKING if named == topic and form.search(reply)), None)


def pairs(exchanges: Iterable[Exchange], draw: Random) -> list[Pair]:
    """A pair for each exchange whose reply matches a rule; the others are left out.

    Unwanted questions are drawn from those that are right elsewhere.
    """
    found = []
    for exchange in exchanges:
        *context, reply = exchange.turns
        if question := question_after(exchange.topic, reply):
            found.append(Pair(tuple(context), reply + question, reply, True))
        elif exchange.topic in _RULES["plain"]:
            found.append(Pair(tuple(context), reply, reply + draw.choice(_QUESTIONS), False))
    return found


def asks(reply: str) -> bool:
    """Whether a reply ends by asking; the model's question marks are narrow ones."""
    return reply.endswith(("？", "?"))
