"""What the demo's models say to held-out dialogues, with the reward of each reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from hanmo.checkpoints import open_model
from hanmo.demo.manners import Pair, asks
from hanmo.demo.model import DECODING, LIMIT
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue
from hanmo.training.rl.rewards import score_records

LONGEST = 1024  # an untrained model's 40 tokens may take many more when their text is read again


@dataclass(frozen=True)
class Judged:
    """A reply to what was said, and its reward."""

    said: str
    reply: str
    reward: float


class Judge:
    """Lets a model reply to what was said, greedily, and a reward model judge the replies."""

    def __init__(self, model: str, held_out: Sequence[Pair]):
        self._opened = open_model(model, device="cpu")
        self._said = [pair.said for pair in held_out]

    def __call__(self, opened: OpenedModel) -> list[Judged]:
        contexts = [opened.family.context(Dialogue(said), LIMIT) for said in self._said]
        replies = [opened.family.decode(one.ids) for one in generate(opened, contexts, Settings(**DECODING))]
        records = [Dialogue((*said, reply)) for said, reply in zip(self._said, replies, strict=True)]
        scores = score_records(self._opened, records, LIMIT, LONGEST, batch_size=64)
        assert None not in scores, "a held-out dialogue or a reply to it is longer than the reward model reads"
        return [
            Judged(said[-1], reply, score)
            for said, reply, score in zip(self._said, replies, scores, strict=True)
            if score is not None
        ]


def reward(judged: Sequence[Judged]) -> float:
    """The mean reward."""
    return fmean(one.reward for one in judged)


def share_asking(judged: Sequence[Judged]) -> float:
    """The share of replies that end by asking."""
    return fmean(asks(one.reply) for one in judged)
