"""What GRPO and PPO share as stages: prompts, rewards and critic of a run, its result and its report."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import TrainingArguments

from hanmo.checkpoints import open_model
from hanmo.errors import ConfigError, RecordError, UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.nn.row_model import ValueKind
from hanmo.processes import process_count
from hanmo.records import Rejects
from hanmo.report.page import Page
from hanmo.training.data_files import DataFiles, require_some
from hanmo.training.lifecycle import Outcome, Ready, Results, Run
from hanmo.training.rl.config import PolicyConfig
from hanmo.training.rl.policy import PolicyTrainer
from hanmo.training.rl.rollout import Engine, OwnEngine, Question, load_reward, question
from hanmo.training.trainable import adapted

THEN = ("hanmo chat {model}", "hanmo eval dialogue {model} FILE")
PLOTS = (
    ("Reward", "reward", ("reward",)),
    ("Distance from the model it started from", "KL, nats a token", ("kl_k1", "kl_k2", "kl_k3")),
    ("Distance, whole replies", "KL, nats a reply", ("kl_reply",)),
    ("Entropy", "nats a token", ("entropy",)),
    ("Clipping", "share of tokens", ("clip_fraction", "value_clip_fraction")),
    ("Critic", "explained variance", ("explained_variance",)),
    ("Length", "tokens", ("length",)),
    ("Ended by itself", "share of replies", ("finished",)),
    ("KL coefficient", "beta", ("beta",)),
)


@dataclass(frozen=True)
class PolicyOutcome(Outcome):
    """``Outcome`` of learning from rewards; ``rows`` are prompts."""

    rounds: int = 0
    reward_before: float | None = None  # mean over the first tenth of the rounds
    reward: float | None = None  # over the last tenth
    kl: float | None = None  # of the last round, nats a reply


def prepare_policy(
    opened: OpenedModel, config: PolicyConfig, files: DataFiles, trainer: Callable[..., PolicyTrainer],
    engine: Engine | None, value_head: ValueKind | None = None, critic: str | None = None,
) -> Ready:  # fmt: skip
    """Prompts, rewards and network of a run; a model, ``critic``, learns the values, or else a head on the policy."""

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
    size = config.trainer.get("per_device_eval_batch_size", TrainingArguments.per_device_eval_batch_size)
    rewards = {name: load_reward(name, opened, config.limit, config.response_limit, size) for name in config.rewards}
    arguments = {
        "logging_steps": config.trainer.get("logging_steps", steps),
        "max_steps": steps * config.rounds,
        "save_strategy": "no",
        "eval_strategy": "no",
        "ignore_data_skip": True,
    }
    made = partial(trainer, config, opened, engine or OwnEngine(opened, config.rollout_batch), rewards)
    return Ready(network, made, prompts, None, rejects, arguments)


def _critic(model: str, policy: OpenedModel) -> Any:
    opened = open_model(model, dtype="fp32", device="cpu")
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
    """Rewards, the curves that tell a policy that learns from one that cheats, and samples."""
    for heading, y, names in PLOTS:
        sources = [name for name in (run.entries[0] if run.entries else {}) if name.startswith("reward/")]
        lines = {name: run.curve(name, "round") for name in (*names, *(sources if names == ("reward",) else ()))}
        if any(lines.values()):
            page.heading(heading)
            page.line_plot({name: line for name, line in lines.items() if line}, x="round", y=y)
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
