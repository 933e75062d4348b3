"""Shared by the stages GRPO and PPO: settings, prompts, rewards and critic of a run, its result and its report."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from transformers import TrainingArguments

from hanmo import config as settings
from hanmo.checkpoints import open_model
from hanmo.errors import ConfigError, RecordError, UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.files import package_yaml
from hanmo.nn.row_model import ValueKind
from hanmo.processes import process_count
from hanmo.records import Rejects
from hanmo.report.page import Page
from hanmo.training.arguments import read_deepspeed, with_precision
from hanmo.training.config import RESERVED, AlignmentConfig
from hanmo.training.data_files import DataFiles, require_some
from hanmo.training.lifecycle import Outcome, Ready, Results, Run
from hanmo.training.rl.policy import PolicyTrainer
from hanmo.training.rl.rewards import Rewards, load_reward, read_specs
from hanmo.training.rl.rollout import Engine, OwnEngine, Question, question
from hanmo.training.trainable import adapted

THEN = ("hanmo chat {model}", "hanmo eval dialogue {model} FILE")
GENERATION = settings.settings_of("hanmo.generation.settings.Settings", **RESERVED["rollouts"])
ARGUMENTS = settings.settings_of("transformers.TrainingArguments", **RESERVED["every stage"], **RESERVED["policies"])


@dataclass(frozen=True)
class PolicyConfig(AlignmentConfig):
    """Settings of learning from rewards; see ``AlignmentConfig`` for the others.

    Attributes:
        rewards: reward models; Python functions as file.py:function or module:function (installed or in the current
            folder), called with the prompts, the replies and, if they take a third argument, the records; or
            verifiers as verify:NAME. Each is text or {reward: TEXT, weight: 0.5, name: TEXT} and, of functions and
            verifiers, further arguments. Their rewards, times their weights, are added (docs/alignment.md).
        reward_seconds: how long a function may take for the replies of a round before the run stops. [seconds]
        reward_process: call functions in processes of their own, which a hanging or crashing one cannot take the run with.
        rounds: how often replies are drawn and learned from. [rounds]
        samples: replies of a round, over all processes. [replies]
        epochs: how often the replies of a round are learned from. [passes]
        generation: decoding settings of rollouts.
        rollout_batch: replies that are decoded at a time. [replies]
        beta: weight of the KL penalty against the model that the run started from. [β]
        clip: how far a token's probability ratio may move from 1 in a round before the token stops counting. [ε]
        reference: how the model of the start is kept: "swap" keeps its trained tensors, "copy" all of it.
        unfinished_penalty: subtracted from the reward of a reply that reached the length limit. [reward]
        max_kl: a round ends early if the policy, measured on the replies of a step, has moved by more than this; null:
            never. [nats per token]
        save_rounds: rounds from one checkpoint to the next; 0: a checkpoint is written only if the run is stopped.
            [rounds]
        show_rounds: rounds from one set of samples (in samples.jsonl and the report) to the next. [rounds]
        trainer: settings of transformers.TrainingArguments, except those that rounds decide.
    """

    rewards: tuple[str | dict[str, Any], ...] = ()
    reward_seconds: float = 60.0
    reward_process: bool = False
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
    trainer: dict[str, Any] = field(default_factory=dict, metadata=ARGUMENTS)

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
        read_specs(self.rewards)
        self.require(
            reward_seconds=(self.reward_seconds > 0, "above 0"),
            rounds=(self.rounds >= 1, "at least 1"),
            samples=(self.samples >= 2, "at least 2"),
            epochs=(self.epochs >= 1, "at least 1"),
            rollout_batch=(self.rollout_batch >= 1, "at least 1"),
            beta=(self.beta >= 0, "0 or more"),
            clip=(0 < self.clip < 1, "between 0 and 1"),
            max_kl=(self.max_kl is None or self.max_kl > 0, "above 0"),
            save_rounds=(self.save_rounds >= 0, "0 (off) or more"),
            show_rounds=(self.show_rounds >= 1, "at least 1"),
        )

    def files(self) -> DataFiles:
        return replace(super().files(), valid=None)

    def trainer_settings(self, has_valid: bool) -> dict[str, Any]:
        return with_precision({"logging_strategy": "steps", "report_to": "none", **read_deepspeed(self.trainer)})

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


@dataclass(frozen=True)
class PolicyOutcome(Outcome):
    """``Outcome`` of learning from rewards; ``rows`` are prompts."""

    rounds: int = 0
    reward_before: float | None = None  # mean over the first tenth of the rounds
    reward: float | None = None  # over the last tenth
    kl: float | None = None  # of the last round, nats a reply


def prepare_policy(
    opened: OpenedModel,
    config: PolicyConfig,
    files: DataFiles,
    trainer: Callable[..., PolicyTrainer],
    engine: Engine | None,
    value_head: ValueKind | None = None,
    critic: str | None = None,
) -> Ready:
    """Prompts, rewards and network of a run; the model ``critic`` learns the values, or else a value head."""

    def questions(file: Path, rejects: Rejects) -> list[Question]:
        found = []
        for record in files.records(file, rejects, reply="waiting"):
            try:
                found.append(question(record, opened, config.limit))
            except RecordError as error:
                rejects.add_bad(error)
            except UnsupportedError as error:
                rejects.add(record.where, str(error).removeprefix(f"{record.where}: "))
        require_some(found, file, "no prompts", rejects)
        return found

    prompts, _, rejects = files.read(questions)
    steps = config.steps_of_round(process_count())
    values = _critic(critic, opened) if critic else None
    network = adapted(opened, config.lora, config.trained_layers, value_head, values)
    arguments = {
        "logging_steps": config.trainer.get("logging_steps", steps),
        "max_steps": steps * config.rounds,
        "save_strategy": "no",
        "eval_strategy": "no",
        "ignore_data_skip": True,
    }
    made = partial(trainer, config, opened, engine or OwnEngine(opened, config.rollout_batch), _rewards(config, opened))
    return Ready(network, made, prompts, None, rejects, arguments)


def _rewards(config: PolicyConfig, policy: OpenedModel) -> Rewards:
    size = config.trainer.get("per_device_eval_batch_size", TrainingArguments.per_device_eval_batch_size)
    lengths, watch = (config.limit, config.response_limit), (config.reward_seconds, config.reward_process)
    specs = read_specs(config.rewards)
    rewards = {spec.name: load_reward(spec, policy, *lengths, size, *watch) for spec in specs}
    return Rewards(rewards, {spec.name: spec.weight for spec in specs})


def _critic(model: str, policy: OpenedModel) -> Any:
    opened = open_model(model, dtype="fp32", device="cpu", blank=policy.network.device.type == "meta")
    if type(opened.family) is not type(policy.family) or opened.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(f"critic: {model} must be of the policy's family and have its vocabulary")
    return opened.network


def policy_figures(run: Run) -> dict[str, Any]:
    """The fields of ``PolicyOutcome``."""
    rewards, kl = ([value for _, value in run.curve(name)] for name in ("reward", "kl_reply"))
    tenth = -(-len(rewards) // 10)
    return {
        "rounds": run.trainer.round,
        "reward_before": fmean(rewards[:tenth]) if rewards else None,
        "reward": fmean(rewards[-tenth:]) if rewards else None,
        "kl": kl[-1] if kl else None,
    }


def policy_sections(run: Run, page: Page) -> None:
    """Rewards, the curves that distinguish learning from gaming the rewards, and samples."""
    sources = [name for name in (run.entries[0] if run.entries else {}) if name.startswith("reward/")]
    for plot in package_yaml("hanmo.training.rl", "plots.yaml"):
        names = plot["names"] + (sources if plot["names"] == ["reward"] else [])
        if lines := {name.removeprefix("reward/"): line for name in names if (line := run.curve(name, "round"))}:
            page.heading(plot["heading"])
            page.line_plot(lines, x="round", y=plot["y"], share=plot.get("share", False))
    file = run.folder / "samples.jsonl"
    if file.is_file():
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        page.heading("Samples")
        page.table(
            ["round", "prompt", "reply", "reward"],
            [[one["round"], one["prompt"], one["reply"], one["reward"]] for one in samples[:8] + samples[8:][-24:]],
        )


RESULTS = Results(
    PolicyOutcome,
    policy_figures,
    policy_sections,
    learned=(("reward", "reward_before", "reward"), ("KL, nats a reply", None, "kl")),
    shown=("reward", "kl_reply", "loss", "length", "finished"),
    facts=("rewards",),
)
