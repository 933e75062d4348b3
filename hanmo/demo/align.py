"""The second part of the demo: a reward model learns which of two replies is more polite, and DPO teaches it.

DPO never sees the reward model, which can therefore score the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hanmo.checkpoints import open_model
from hanmo.demo.corpus.build import Corpus, conversations
from hanmo.demo.corpus.template import Exchange
from hanmo.demo.display import Display, ShowTraining, Update, require_finished
from hanmo.demo.examine import answer_openings, fitting
from hanmo.demo.manners import Pair, asks, pairs
from hanmo.demo.model import DECODING, LIMIT, SETTINGS
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

DRAWN = 7  # dialogues per pair that asks back: after one in six or seven a question may follow
STEPS = 200  # of DPO; the reward model takes half as many
QUICK_STEPS = 100
# Small: DPO lowers every token of a rejected reply, its stop too, and beyond the end of all replies nothing raises that again.
BETA = 0.01
SFT_WEIGHT = 5.0  # without it the model forgets to stop: most rejected replies have the stop in its place
MEASURED = 6  # how often the reward is measured, the last time at the end
LONGEST = 1024  # 40 generated tokens may take many more when their text is tokenised again


@dataclass(frozen=True)
class ScoredReply:
    prompt: str
    reply: str
    reward: float


def score_replies(judge: OpenedModel, held_out: Sequence[Pair], opened: OpenedModel) -> list[ScoredReply]:
    """Replies to the held-out dialogues, greedily decoded, with the scores of the reward model ``judge``."""
    asked = [pair.context for pair in held_out]
    contexts = [opened.family.context(Dialogue(turns), LIMIT) for turns in asked]
    replies = [opened.family.decode(one.ids) for one in generate(opened, contexts, Settings(**DECODING))]
    records = [Dialogue((*turns, reply)) for turns, reply in zip(asked, replies, strict=True)]
    scores = score_records(judge, records, LIMIT, LONGEST, batch_size=64)
    assert None not in scores, "a held-out dialogue or a reply to it is longer than the reward model reads"
    return [ScoredReply(one.turns[-2], one.turns[-1], score or 0.0) for one, score in zip(records, scores, strict=True)]


def reward(replies: Sequence[ScoredReply]) -> float:
    return fmean(one.reward for one in replies)


def share_asking(replies: Sequence[ScoredReply]) -> float:
    return fmean(asks(one.reply) for one in replies)


@dataclass(frozen=True)
class Alignment:
    """The results of alignment on held-out dialogues."""

    accuracy: float  # share of the held-out pairs that the reward model decides correctly; 0.5 is chance
    talk: tuple[list[ScoredReply], list[ScoredReply]]  # replies before and after, where asking back is right
    facts: tuple[list[ScoredReply], list[ScoredReply]]  # the same, where it is wrong
    openings: list[str]  # replies of the aligned model to the ten openings
    curve: list[Point]  # (step, mean reward of all held-out replies) of DPO
    learned: list[Point]  # (step, share of training pairs decided correctly) of the reward model

    def as_dict(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "reward_before": reward((*self.talk[0], *self.facts[0])),
            "reward_after": reward((*self.talk[1], *self.facts[1])),
            "asking_before": share_asking(self.talk[0]),
            "asking_after": share_asking(self.talk[1]),
            "openings_fitting": sum(fitting(self.openings)),
            **asdict(self),
        }


class _Curve(ShowTraining):
    """Also measures the reward of the model during training, at regular steps before the last."""

    def __init__(self, update: Update, score: Callable[[OpenedModel], list[ScoredReply]], opened: OpenedModel):
        super().__init__(update)
        self._score, self._opened = score, opened
        self.points: list[Point] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % -(-state.max_steps // MEASURED) == 0 and state.global_step < state.max_steps:
            found = reward(self._score(replace(self._opened, network=kwargs["model"])))
            self.points.append((state.global_step, found))
            self._loss = f", reward {found:.2f}"
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """The reward is shown, not the loss."""


def align(draft: Path, tuned: OpenedModel, found: Corpus, seed: int, steps: int, show: Display) -> Alignment:
    """Reward model and DPO from the fine-tuned model in ``draft``/sft/model; the result is in ``draft``/dpo/model."""
    model, draw = str(draft / "sft" / "model"), Random(f"align {seed}")
    trainer = {**SETTINGS["alignment"], "seed": seed, "logging_steps": max(1, steps // 20)}
    most = steps * trainer["per_device_train_batch_size"] // 2
    train = _balanced(pairs(conversations(DRAWN * most, draw), draw), draw, most)
    held_out = pairs(
        (Exchange(topic, one.turns, True) for topic, dialogues in found.held_out.items() for one in dialogues), draw
    )
    data = _write(draft / "pairs" / "train.jsonl", train)
    valid = _write(draft / "pairs" / "held_out.jsonl", held_out)
    with show.stage("reward model") as update:
        settings = {**trainer, "max_steps": max(1, steps // 2)}
        judging = RewardConfig(model, data, str(draft / "reward"), valid, limit=LIMIT, trainer=settings)
        trained = train_reward(judging, show=ShowTraining(update))
        require_finished(trained)
        update(1, 1, f"{100 * (trained.accuracy or 0):.0f} % of held-out pairs right")
    with show.stage("preferences") as update:
        score = partial(score_replies, open_model(str(trained.model), device="cpu"), held_out)
        before, curve = score(tuned), _Curve(update, score, tuned)
        settings, out = {**trainer, "max_steps": steps}, str(draft / "dpo")
        config = DpoConfig(model, data, out, limit=LIMIT, beta=BETA, sft_weight=SFT_WEIGHT, trainer=settings)
        outcome = dpo(config, show=curve)
        require_finished(outcome)
        aligned = open_model(str(outcome.model), device="cpu")
        after = score(aligned)
        update(1, 1, f"reward {reward(before):.2f} before, {reward(after):.2f} after")
    openings = answer_openings(aligned, Settings(**DECODING))
    entries = read_metrics(draft / "reward" / "metrics.jsonl")

    def of(asking: bool) -> tuple[list[ScoredReply], list[ScoredReply]]:
        places = [place for place, pair in enumerate(held_out) if pair.asks is asking]
        return [before[place] for place in places], [after[place] for place in places]

    rewards = [(0, reward(before)), *curve.points, (outcome.steps, reward(after))]
    learned = [(entry["step"], entry["accuracy"]) for entry in entries if "accuracy" in entry]
    return Alignment(trained.accuracy or 0.0, of(True), of(False), openings, rewards, learned)


def _balanced(found: Sequence[Pair], draw: Random, most: int) -> list[Pair]:
    """Equally many pairs of both kinds, at most ``most`` of each."""
    asking, plain = ([pair for pair in found if pair.asks is kind][:most] for kind in (True, False))
    count = min(len(asking), len(plain))
    kept = asking[:count] + plain[:count]
    draw.shuffle(kept)
    return kept


def _write(file: Path, found: Sequence[Pair]) -> str:
    write_text(file, "".join(f"{json_text(pair.as_dict())}\n" for pair in found))
    return str(file)
