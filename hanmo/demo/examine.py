"""The demo's measurements before and after training: held-out dialogues by topic, and the replies to ten openings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hanmo import metrics
from hanmo.demo.model import LIMIT
from hanmo.evaluation.dialogue import DialogueResult, Sample, evaluate
from hanmo.evaluation.engine.cache import Progress
from hanmo.families.base import OpenedModel
from hanmo.files import package_yaml
from hanmo.generation.chat import ChatSession
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue

SAID = package_yaml("hanmo.demo", "examine.yaml")
CONVERSATIONS, BEYOND = SAID["conversations"], SAID["beyond"]


@dataclass(frozen=True)
class Opening:
    """The user's first message, and which replies fit; examine.yaml explains the attributes."""

    prompt: str
    means: str
    expects: Sequence[str]
    forbids: Sequence[str] = ()

    def fits(self, reply: str) -> bool:
        expected, forbidden = (any(re.search(one, reply) for one in rules) for rules in (self.expects, self.forbids))
        return len(reply) <= 40 and expected and not forbidden


OPENINGS = [Opening(**opening) for opening in SAID["openings"]]


def fitting(replies: Sequence[str]) -> list[bool]:
    """Which of the replies to the ten openings fit."""
    return [opening.fits(reply) for opening, reply in zip(OPENINGS, replies, strict=True)]


@dataclass(frozen=True)
class Examination:
    result: DialogueResult  # over all held-out dialogues
    topics: dict[str, list[Sample]]  # by topic
    openings: list[str]  # the replies to the ten openings, in order

    def as_dict(self) -> dict[str, Any]:
        samples = self.result.samples
        return {
            "held_out": {"exact": exact(samples), "f1": f1(samples), "dialogues": len(samples)},
            "topics": {topic: {"exact": exact(found), "f1": f1(found)} for topic, found in self.topics.items()},
            "openings": [
                {"prompt": opening.prompt, "reply": reply, "fits": fits}
                for opening, reply, fits in zip(OPENINGS, self.openings, fitting(self.openings), strict=True)
            ],
            "published": self.result.published,
            "corrected": self.result.corrected,
        }


def examine(
    opened: OpenedModel, held_out: Mapping[str, Sequence[Dialogue]], settings: Settings, progress: Progress
) -> Examination:
    records = [(topic, dialogue) for topic, dialogues in held_out.items() for dialogue in dialogues]
    result = evaluate(opened, [dialogue for _, dialogue in records], settings, LIMIT, LIMIT, 64, progress=progress)
    assert len(result.samples) == len(records), "a dialogue of the corpus is longer than the model reads"
    topics: dict[str, list[Sample]] = {}
    for (topic, _), sample in zip(records, result.samples, strict=True):
        topics.setdefault(topic, []).append(sample)
    return Examination(result, topics, answer_openings(opened, settings))


def answer_openings(opened: OpenedModel, settings: Settings) -> list[str]:
    return [talk(opened, [opening.prompt], settings)[-1] for opening in OPENINGS]


def talk(opened: OpenedModel, messages: Sequence[str], settings: Settings) -> list[str]:
    """A conversation with these messages of the user: the turns of user and model."""
    session = ChatSession(opened, settings, LIMIT)
    for text in messages:
        session.reply(text)
    return session.turns


def exact(samples: Sequence[Sample]) -> float:
    """Share of replies that match the expected one exactly, in percent."""
    return 100 * sum(sample.generation == sample.response for sample in samples) / len(samples)


def f1(samples: Sequence[Sample]) -> float:
    """Mean unigram F1 over characters, in percent."""
    said, expected = [sample.generation for sample in samples], [[sample.response] for sample in samples]
    return 100 * metrics.unigram_f1(said, expected)
