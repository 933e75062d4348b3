"""The second part of the demo: a reward model learns which of two replies has the better manners, and DPO teaches them.

The manners are those of ``manners``: a reply that asks back where people do, and nothing added to an answer of fact.
DPO learns from the pairs and never sees the reward model, so that the reward model can score the result. The
model that chats stays the fine-tuned one; the aligned one is saved beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hanmo.checkpoints import open_model
from hanmo.demo.corpus.build import Corpus, conversations
from hanmo.demo.corpus.template import Exchange
from hanmo.demo.display import Display, ShowTraining, Update, require_finished
from hanmo.demo.examine import talk
from hanmo.demo.manners import Pair, asks, pairs
from hanmo.demo.model import DECODING, LIMIT
from hanmo.demo.openings import OPENINGS
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, write_text
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue
from hanmo.report.plots import Point
from hanmo.training.callbacks import read_metrics
from hanmo.training.rl.rewards import score_records
from hanmo.training.stages.dpo import DpoConfig, dpo
from hanmo.training.stages.reward import RewardConfig, train_reward

DRAWN = 7  # dialogues for every pair that asks back: one in six or seven ends where a question may follow
STEPS = 120  # of DPO; the reward model takes half as many
QUICK_STEPS = 60
BATCH = 32
BETA = 0.1
SFT_WEIGHT = 5.0  # without it the model forgets how to stop: the stop is what most rejected replies have in its place
MEASURED = 6  # times that the reward is measured, the last of them at the end
LONGEST = 1024  # an untrained model's 40 tokens may take many more when their text is read again
TRAINER: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "max_grad_norm": 1.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "use_cpu": True,
}


@dataclass(frozen=True)
class ScoredReply:
    """A reply to a prompt, and its reward."""

    prompt: str
    reply: str
    reward: float


class ReplyScorer:
    """Replies of a model to the held-out dialogues, greedily decoded, with the scores of a reward model."""

    def __init__(self, model: str, held_out: Sequence[Pair]):
        self._opened = open_model(model, device="cpu")
        self._contexts = [pair.context for pair in held_out]

    def __call__(self, opened: OpenedModel) -> list[ScoredReply]:
        contexts = [opened.family.context(Dialogue(turns), LIMIT) for turns in self._contexts]
        replies = [opened.family.decode(one.ids) for one in generate(opened, contexts, Settings(**DECODING))]
        records = [Dialogue((*turns, reply)) for turns, reply in zip(self._contexts, replies, strict=True)]
        scores = score_records(self._opened, records, LIMIT, LONGEST, batch_size=64)
        assert None not in scores, "a held-out dialogue or a reply to it is longer than the reward model reads"
        return [
            ScoredReply(turns[-1], reply, score)
            for turns, reply, score in zip(self._contexts, replies, scores, strict=True)
            if score is not None
        ]


def reward(replies: Sequence[ScoredReply]) -> float:
    """The mean reward."""
    return fmean(one.reward for one in replies)


def share_asking(replies: Sequence[ScoredReply]) -> float:
    """The share of replies that end by asking."""
    return fmean(asks(one.reply) for one in replies)


@dataclass(frozen=True)
class Alignment:
    """The results of alignment on held-out dialogues.

    Attributes:
        accuracy: share of the held-out pairs that the reward model decides correctly; 0.5 is chance.
        talk: the replies before and after, where it is right to ask back.
        facts: the same, where it is not.
        openings: the replies of the aligned model to the ten openings.
        curve: (step, mean reward of all held-out replies) of DPO.
        learned: (step, share of training pairs decided correctly) of the reward model.
    """

    accuracy: float
    talk: tuple[list[ScoredReply], list[ScoredReply]]
    facts: tuple[list[ScoredReply], list[ScoredReply]]
    openings: list[str]
    curve: list[Point]
    learned: list[Point]

    @property
    def fitting(self) -> list[bool]:
        """Of the ten openings, which still get a fitting reply."""
        return [opening.fits(reply) for opening, reply in zip(OPENINGS, self.openings, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "accuracy": self.accuracy,
            "reward_before": reward((*self.talk[0], *self.facts[0])),
            "reward_after": reward((*self.talk[1], *self.facts[1])),
            "asking_before": share_asking(self.talk[0]),
            "asking_after": share_asking(self.talk[1]),
            "openings_fitting": sum(self.fitting),
            **asdict(self),
        }


class _Curve(ShowTraining):
    """Also measures the reward of the model in training, every so many steps before the last."""

    def __init__(self, update: Update, scorer: ReplyScorer, opened: OpenedModel):
        super().__init__(update)
        self._scorer, self._opened = scorer, opened
        self.points: list[Point] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % -(-state.max_steps // MEASURED) == 0 and state.global_step < state.max_steps:
            found = self._scorer(replace(self._opened, network=kwargs["model"]))
            self.points.append((state.global_step, reward(found)))
            self._loss = f", reward {self.points[-1][1]:.2f}"
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """The reward is shown, not the loss."""


def align(draft: Path, tuned: OpenedModel, found: Corpus, seed: int, steps: int, show: Display) -> Alignment:
    """Reward model and DPO from the fine-tuned model, which is in ``draft``/sft/model; the result is in ``draft``/dpo/model.

    Raises:
        KeyboardInterrupt: stopped by the user.
    """
    model, draw = str(draft / "sft" / "model"), Random(f"align {seed}")
    most = steps * BATCH // 2
    train = _balanced(pairs(conversations(DRAWN * most, draw), draw), draw, most)
    held_out = pairs(
        (Exchange(topic, one.turns, True) for topic, dialogues in found.held_out.items() for one in dialogues), draw
    )
    data = _write(draft / "pairs" / "train.jsonl", train)
    valid = _write(draft / "pairs" / "held_out.jsonl", held_out)
    trainer = {**TRAINER, "seed": seed, "logging_steps": max(1, steps // 20)}
    with show.stage("reward model") as update:
        settings = {**trainer, "max_steps": max(1, steps // 2)}
        trained = train_reward(
            RewardConfig(model, data, str(draft / "reward"), valid, limit=LIMIT, trainer=settings),
            show=ShowTraining(update),
        )
        require_finished(trained)
        update(1, 1, f"{100 * (trained.accuracy or 0):.0f} % of held-out pairs right")
    with show.stage("preferences") as update:
        scorer = ReplyScorer(str(trained.model), held_out)
        before, curve = scorer(tuned), _Curve(update, scorer, tuned)
        settings = {**trainer, "max_steps": steps}
        outcome = dpo(
            DpoConfig(
                model, data, str(draft / "dpo"), limit=LIMIT, beta=BETA, sft_weight=SFT_WEIGHT, trainer=settings
            ),
            show=curve,
        )  # fmt: skip
        require_finished(outcome)
        aligned = open_model(str(outcome.model), device="cpu")
        after = scorer(aligned)
        update(1, 1, f"reward {reward(before):.2f} before, {reward(after):.2f} after")
    openings = [talk(aligned, [opening.prompt], Settings(**DECODING))[-1] for opening in OPENINGS]
    entries = read_metrics(draft / "reward" / "metrics.jsonl")

    def of(asking: bool) -> tuple[list[ScoredReply], list[ScoredReply]]:
        places = [place for place, pair in enumerate(held_out) if pair.asks is asking]
        return [before[place] for place in places], [after[place] for place in places]

    return Alignment(
        trained.accuracy or 0.0, of(True), of(False), openings,
        [(0, reward(before)), *curve.points, (outcome.steps, reward(after))],
        [(entry["step"], entry["accuracy"]) for entry in entries if "accuracy" in entry],
    )  # fmt: skip


def _balanced(found: Sequence[Pair], draw: Random, most: int) -> list[Pair]:
    """As many pairs of either kind, and no more than ``most`` of each."""
    asking, plain = ([pair for pair in found if pair.asks is kind] for kind in (True, False))
    count = min(len(asking), len(plain), most)
    kept = asking[:count] + plain[:count]
    draw.shuffle(kept)
    return kept


def _write(file: Path, found: Sequence[Pair]) -> str:
    write_text(file, "".join(json_text(pair.as_dict()) + "\n" for pair in found))
    return str(file)
