"""Settings of learning from rewards."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments

from hanmo import config as settings
from hanmo.errors import ConfigError
from hanmo.training.arguments import read_deepspeed
from hanmo.training.config import RESERVED, AlignmentConfig

GENERATION = settings.settings_of(
    "hanmo.generation.settings.Settings",
    seed="drawn from trainer.seed",
    num_beams="rollouts are sampled",
    published="a policy is trained as it is",
)
LENGTH = "a run is as long as rounds=N says"
TRAINER = settings.settings_of(
    "transformers.TrainingArguments",
    **RESERVED,
    max_steps=LENGTH,
    num_train_epochs=f"{LENGTH}; epochs=N are the passes over a round",
    save_strategy="checkpoints are written after every save_rounds=N rounds",
    save_steps="checkpoints are written after every save_rounds=N rounds",
    eval_strategy="a policy is judged by the rewards of its own replies",
    ignore_data_skip="always so: a resumed run continues with the next round",
)


@dataclass(frozen=True)
class PolicyConfig(AlignmentConfig):
    """Settings of learning from rewards; see ``AlignmentConfig`` for the others.

    Attributes:
        rewards: reward models, or Python functions as module:function, called with the prompts and the replies; their
            rewards are added.
        rounds: rounds of the run; in each, replies are drawn and learned from.
        samples: replies of a round, over all processes.
        epochs: passes over the replies of a round.
        generation: decoding settings of rollouts.
        rollout_batch: replies that are decoded at a time.
        beta: weight of the KL penalty (the papers' beta) against the model that the run started from.
        clip: the papers' epsilon: a token counts no more once its probability has changed by this share in a round.
        reference: how the model of the start is kept: "swap" keeps its trained tensors, "copy" all of it.
        unfinished_penalty: subtracted from the reward of a reply that reached the length limit.
        max_kl: a round ends early when the replies of a step show that the policy has moved by more (nats a token);
            null: never.
        save_rounds: rounds from one checkpoint to the next; 0: a checkpoint is written only when the run is stopped.
        show_rounds: rounds from one set of samples (in samples.jsonl and the report) to the next.
        trainer: settings of transformers.TrainingArguments, except those that rounds decide.
    """

    rewards: tuple[str, ...] = ()
    rounds: int = 100
    samples: int = 64
    epochs: int = 1
    generation: dict[str, Any] = field(default_factory=dict, metadata=GENERATION)
    rollout_batch: int = 64
    beta: float = 0.05
    clip: float = 0.2
    reference: Literal["swap", "copy"] = "swap"
    unfinished_penalty: float = 0.0
    max_kl: float | None = None
    save_rounds: int = 0
    show_rounds: int = 10
    trainer: dict[str, Any] = field(default_factory=dict, metadata=TRAINER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.valid is not None:
            raise ConfigError(
                "valid: a policy is judged by the rewards of its own replies; it reads no validation file"
            )
        if not self.rewards:
            raise ConfigError(
                "rewards: name at least one reward model or module:function, e.g. rewards=[runs/reward/model]"
            )
        self.require(
            rounds=(self.rounds >= 1, "at least 1"),
            samples=(self.samples >= 2, "at least 2"),
            epochs=(self.epochs >= 1, "at least 1"),
            rollout_batch=(self.rollout_batch >= 1, "at least 1"),
            beta=(self.beta >= 0, "0 or more"),
            clip=(0 < self.clip < 1, "between 0 and 1"),
            show_rounds=(self.show_rounds >= 1, "at least 1"),
        )

    def files(self) -> tuple[Path, None]:
        return super().files()[0], None

    def trainer_settings(self, has_valid: bool) -> dict[str, Any]:
        return {"logging_strategy": "steps", "report_to": "none", **read_deepspeed(self.trainer)}

    def steps_of_round(self, processes: int) -> int:
        """Optimizer steps of a round; ConfigError if its replies do not make whole steps."""
        batch = self.trainer.get("per_device_train_batch_size", TrainingArguments.per_device_train_batch_size)
        accumulated = self.trainer.get("gradient_accumulation_steps", TrainingArguments.gradient_accumulation_steps)
        step = batch * accumulated * processes
        if self.samples % step:
            raise ConfigError(
                f"samples={self.samples} must be a multiple of the {step} replies of an optimizer step "
                "(trainer.per_device_train_batch_size x trainer.gradient_accumulation_steps x processes)"
            )
        return self.samples // step * self.epochs
