"""The demo's second part: a reward model of its dialogues judges what the trained model says, and PPO raises the reward.

A reply is right if it is the one that goes with what was said, and wrong if it is from another dialogue. The model that
chats stays the fine-tuned one; the aligned one is left in OUT/aligned.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from transformers import TrainerCallback

from hanmo.checkpoints import open_model
from hanmo.data.corpus import Corpus
from hanmo.demo.model import LIMIT
from hanmo.files import write_text
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse
from hanmo.report import Page, Point
from hanmo.training.callbacks import read_metrics
from hanmo.training.ppo import PpoConfig, ppo
from hanmo.training.reward import RewardConfig, train_reward
from hanmo.training.reward_scores import score_records

ROUNDS = 20  # of PPO
PAIRS = 8000
SAMPLES, BATCH = 64, 32
TALK: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0}  # replies are drawn, in learning as in measuring
TRAINER: dict[str, Any] = {"per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 64, "use_cpu": True}


@dataclass(frozen=True)
class Alignment:
    """What came of it; rewards are means over held-out dialogues.

    Attributes:
        accuracy: share of held-out pairs that the reward model decides rightly; 0.5 is chance.
        kl: nats a reply that the policy has moved.
        replies: what was said, and the reply before and after, with the reward of each.
        curve: (round, reward) of PPO.
    """

    accuracy: float
    reward_before: float
    reward_after: float
    kl: float
    replies: list[tuple[str, str, float, str, float]]
    curve: list[Point]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def align(draft: Path, found: Corpus, seed: int, rounds: int, show: Callable[[], TrainerCallback]) -> Alignment:
    """Reward model and PPO from the fine-tuned model in ``draft``; the aligned model is ``draft``/ppo/model.

    Args:
        show: makes what shows the progress of a stage.
    """
    tuned, draw = str(draft / "sft" / "model"), Random(f"align {seed}")
    held_out = _exchanges([one for dialogues in found.held_out.values() for one in dialogues])
    train = _exchanges(found.train[: 4 * PAIRS])[:PAIRS]
    pairs = _write(draft / "pairs.jsonl", _pairs(train, draw))
    valid = _write(draft / "valid.jsonl", _pairs(held_out, draw))
    asked = _write(draft / "prompts.jsonl", [{"prompt": said, "response": ""} for said, _ in train])
    settings = {**TRAINER, "save_strategy": "no", "seed": seed}
    judged = train_reward(
        RewardConfig(
            tuned, pairs, str(draft / "reward"), valid=valid, limit=LIMIT,
            trainer={**settings, "eval_strategy": "no", "max_steps": 10 * rounds, "learning_rate": 5e-4},
        ),
        show=show(),
    )  # fmt: skip
    _stopped(judged.signal)
    outcome = ppo(
        PpoConfig(
            tuned, asked, str(draft / "ppo"), rewards=(str(judged.model),), rounds=rounds, samples=SAMPLES, epochs=2,
            limit=LIMIT, beta=0.05, value_weight=0.1, generation=TALK, trainer={**settings, "learning_rate": 2e-4},
        ),
        show=show(),
    )  # fmt: skip
    _stopped(outcome.signal)
    before, after = (_replies(model, str(judged.model), held_out) for model in (tuned, str(outcome.model)))
    entries = [entry for entry in read_metrics(draft / "ppo" / "metrics.jsonl") if "reward" in entry]
    replies = [
        (said, *one, *other)
        for (said, _), one, other in zip(held_out, before, after, strict=True)
        if one[0] != other[0]
    ]
    return Alignment(
        judged.accuracy or 0.0,
        fmean(reward for _, reward in before),
        fmean(reward for _, reward in after),
        outcome.kl or 0.0,
        replies[:12],
        [(entry["round"], entry["reward"]) for entry in entries],
    )


def show_alignment(page: Page, found: Alignment) -> None:
    """The section of the report."""
    page.heading("Learning from a reward")
    page.paragraph(
        f"A reward model learned to tell the right reply from one of another dialogue: it is right about "
        f"{100 * found.accuracy:.1f} % of held-out pairs (guessing: 50 %). PPO then raised the reward of replies, which are "
        f"drawn here and not chosen greedily, from {found.reward_before:.2f} to {found.reward_after:.2f} on held-out "
        f"dialogues, {found.kl:.1f} nats a reply away from the model it started from."
    )
    page.line_plot({"reward": found.curve}, x="round", y="reward of the replies")
    page.table(
        ["said", "reply before", "reward", "reply after", "reward"],
        [[said, one, f"{reward:.2f}", other, f"{then:.2f}"] for said, one, reward, other, then in found.replies],
        caption="Held-out dialogues that are answered differently, the first of them",
    )


def _exchanges(dialogues: Sequence[Dialogue]) -> list[tuple[str, str]]:
    """What was said and the reply, of dialogues of two turns."""
    return [(one.turns[0], one.turns[1]) for one in dialogues if len(one.turns) == 2]


def _pairs(exchanges: Sequence[tuple[str, str]], draw: Random) -> list[dict[str, str]]:
    found = []
    for said, reply in exchanges:
        other = draw.choice(exchanges)[1]
        if other != reply:
            found.append({"prompt": said, "chosen": reply, "rejected": other})
    return found


def _write(file: Path, records: Sequence[dict[str, str]]) -> str:
    write_text(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
    return str(file)


def _replies(model: str, judge: str, exchanges: Sequence[tuple[str, str]]) -> list[tuple[str, float]]:
    """A reply to each, and its reward."""
    opened = open_model(model, device="cpu")
    contexts = [opened.family.context(PromptResponse(said, ""), LIMIT) for said, _ in exchanges]
    said = [opened.family.decode(one.ids) for one in generate(opened, contexts, Settings(**TALK, seed=1))]
    records = [PromptResponse(asked, reply) for (asked, _), reply in zip(exchanges, said, strict=True)]
    scores = score_records(open_model(judge, device="cpu"), records, LIMIT, batch_size=64)
    return [(reply, 0.0 if score is None else score) for reply, score in zip(said, scores, strict=True)]


def _stopped(by: int | None) -> None:
    if by == signal.SIGINT:
        raise KeyboardInterrupt
    if by is not None:
        raise SystemExit(128 + by)
