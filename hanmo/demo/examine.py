"""The demo's measurements before and after training: held-out dialogues by topic and the ten openings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hanmo import metrics
from hanmo.demo.model import LIMIT
from hanmo.demo.openings import OPENINGS
from hanmo.evaluation.dialogue import DialogueResult, Sample, evaluate
from hanmo.evaluation.engine.row_scores import Progress
from hanmo.families.base import OpenedModel
from hanmo.generation.chat import ChatSession
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue

CONVERSATIONS = (
    ("你好", "你好，我叫小红。", "今天星期五，后天星期几？", "我叫什么名字？", "谢谢你！", "再见！"),
    ("我想去西安玩。", "那里有什么好吃的？", "西安的天气怎么样？"),
    ("来一份饺子和一杯豆浆。", "我点了什么喝的？", "苹果五块钱一斤，买三斤多少钱？"),
    ("上联：春风", "红花对什么？", "高的反义词是什么？", "一什么书？"),
)
BEYOND = (
    ("人为什么要睡觉？",),
    ("请把“我爱你”翻译成英语。",),
    ("三百加五百等于几？",),
    ("小明有三个苹果，吃了一个，还剩几个？",),
)


@dataclass(frozen=True)
class Examination:
    """The results of a model.

    Attributes:
        result: the published evaluation over all held-out dialogues.
        topics: the samples by topic.
        openings: the replies to the ten openings, in order.
    """

    result: DialogueResult
    topics: dict[str, list[Sample]]
    openings: list[str]

    @property
    def exact(self) -> float:
        """Share of the held-out dialogues answered word for word, in percent."""
        return exact([sample for samples in self.topics.values() for sample in samples])

    @property
    def fitting(self) -> list[bool]:
        """Of the ten openings, which got a fitting reply."""
        return [opening.fits(reply) for opening, reply in zip(OPENINGS, self.openings, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "held_out": {"exact": self.exact, "f1": f1(self.result.samples), "dialogues": len(self.result.samples)},
            "topics": {topic: {"exact": exact(found), "f1": f1(found)} for topic, found in self.topics.items()},
            "openings": [
                {"prompt": opening.prompt, "reply": reply, "fits": fits}
                for opening, reply, fits in zip(OPENINGS, self.openings, self.fitting, strict=True)
            ],
            "published": self.result.published,
            "corrected": self.result.corrected,
        }


def examine(
    opened: OpenedModel,
    held_out: Mapping[str, Sequence[Dialogue]],
    settings: Settings,
    progress: Progress | None = None,
) -> Examination:
    """Let a model answer the held-out dialogues and the openings."""
    records = [(topic, dialogue) for topic, dialogues in held_out.items() for dialogue in dialogues]
    result = evaluate(opened, [dialogue for _, dialogue in records], settings, LIMIT, LIMIT, 64, progress=progress)
    assert len(result.samples) == len(records), "a dialogue of the corpus is longer than the model reads"
    topics: dict[str, list[Sample]] = {}
    for (topic, _), sample in zip(records, result.samples, strict=True):
        topics.setdefault(topic, []).append(sample)

    return Examination(result, topics, [talk(opened, [opening.prompt], settings)[-1] for opening in OPENINGS])


def talk(opened: OpenedModel, messages: Sequence[str], settings: Settings) -> list[str]:
    """A conversation with these messages of the user: the turns of user and model."""
    session = ChatSession(opened, settings, LIMIT)
    for text in messages:
        session.reply(text)
    return session.turns


def exact(samples: Sequence[Sample]) -> float:
    """Share of replies that are word for word as expected, in percent."""
    return 100 * sum(sample.generation == sample.response for sample in samples) / len(samples)


def f1(samples: Sequence[Sample]) -> float:
    """Mean unigram F1 over characters, in percent."""
    return 100 * metrics.unigram_f1(
        [sample.generation for sample in samples], [[sample.response] for sample in samples]
    )
