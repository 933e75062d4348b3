"""A run of a stage that learns from rewards, from its settings to the model and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback, set_seed

from hanmo.checkpoints import open_model, save_model
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.nn.row_model import ValueKind
from hanmo.records import Rejects, iter_records
from hanmo.report.page import Page
from hanmo.training.callbacks import read_metrics
from hanmo.training.pairs import adapted, open_policy
from hanmo.training.rl.policy import PolicyConfig, PolicyTrainer, steps_of_round
from hanmo.training.rl.rollout import Engine, OwnEngine, load_reward, question
from hanmo.training.run_folder import arguments, begin, callbacks, data_files, rate_factor
from hanmo.training.trainable import merged


@dataclass(frozen=True)
class PolicyOutcome:
    """How a run ended. ``signal`` stopped it before its end; there is then no model, and it can be resumed.

    ``reward_before`` and ``reward`` are means over the first and the last tenth of the rounds.
    """

    run: str
    rounds: int
    steps: int
    reward_before: float | None
    reward: float | None
    kl: float | None
    prompts: int
    seconds: float
    signal: int | None = None
    model: str | None = None


def run_policy(
    title: str,
    config: PolicyConfig,
    trainer_class: Callable[..., PolicyTrainer],
    value_head: ValueKind | None = None,
    critic: str | None = None,
    resume: bool = False,
    show: TrainerCallback | None = None,
    engine: Engine | None = None,
    prepare: Callable[[PolicyTrainer], None] | None = None,
) -> PolicyOutcome:
    """Train a policy; the run's folder is described in ``training/run_folder.py``.

    Args:
        critic: a model whose network learns the values; None: a value head on the policy, if ``value_head`` says so.
        engine: makes the replies; ours if None.
        prepare: what the stage does to its trainer before the first round.

    Raises:
        HanmoError: a setting, a file or a record is wrong, or training diverged.
    """
    start = time.monotonic()
    file, _ = data_files(config.data, config.valid)
    given = {"logging_strategy": "steps", "report_to": "none", **config.trainer}
    config = replace(config, trainer=given)
    set_seed(given.get("seed", 42))
    opened = open_policy(config)
    rejects = Rejects()
    questions = [
        question(record, opened, config.limit)
        for record in iter_records(file, rejects if config.skip_bad else None, reply="waiting")
    ]
    if not questions:
        raise ConfigError(f"{file}: no prompts")
    with TemporaryDirectory() as nowhere:  # tells how many steps there are before the folder is made
        steps = steps_of_round(config, arguments(Path(nowhere), {**given, "max_steps": 1}))
    folder = Path(config.out)
    checkpoint = begin(folder, config, resume)
    fixed = {"max_steps": steps * config.rounds, "save_strategy": "no", "eval_strategy": "no", "ignore_data_skip": True}
    args = arguments(folder, {"logging_steps": steps, "disable_tqdm": True, **given, **fixed})
    network = adapted(opened, config, value_head, _critic(critic, opened) if critic else None)
    rewards = {
        name: load_reward(name, opened, config.limit, config.response_limit, args.per_device_eval_batch_size)
        for name in config.rewards
    }
    extra, stop = callbacks(folder, show)
    trainer = trainer_class(
        config, opened, network, args, questions, engine or OwnEngine(opened, config.rollout_batch), rewards,
        rate_factor(config.schedule, args, False), extra,
    )  # fmt: skip
    if prepare is not None:
        prepare(trainer)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        stop.restore()
    entries = [entry for entry in read_metrics(folder / "metrics.jsonl") if "reward" in entry]
    tenth = -(-len(entries) // 10)
    outcome = PolicyOutcome(
        run=str(folder),
        rounds=trainer.round,
        steps=trainer.state.global_step,
        reward_before=_mean([entry["reward"] for entry in entries[:tenth]]),
        reward=_mean([entry["reward"] for entry in entries[-tenth:]]),
        kl=entries[-1]["kl_reply"] if entries else None,
        prompts=len(questions),
        seconds=round(time.monotonic() - start, 1),
        signal=stop.signal,
    )
    if stop.signal is not None:
        return outcome
    if trainer.is_world_process_zero():
        trained = merged(network)
        trained.value_head = trained.config.value_head = trained.critic = None  # what is saved speaks
        save_model(replace(opened, network=trained), folder / "model")
        facts = {"model": opened.source, "data": config.data, "rewards": ", ".join(config.rewards)}
        facts |= {name: value for name, value in asdict(outcome).items() if value is not None}
        write_policy_report(folder, title, opened.source, facts)
    return replace(outcome, model=str(folder / "model"))


def _critic(model: str, policy: OpenedModel) -> Any:
    opened = open_model(model, dtype="fp32", device="cpu")
    if type(opened.family) is not type(policy.family) or opened.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(f"critic: {model} must be of the policy's family and have its vocabulary")
    return opened.network


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


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


def write_policy_report(folder: Path, title: str, subtitle: str, facts: dict[str, Any]) -> None:
    """RUN/report.html: rewards, and what tells a policy that is learning from one that is cheating, with samples."""
    entries = read_metrics(folder / "metrics.jsonl")
    page = Page(title, subtitle)
    page.facts(facts)
    for heading, y, names in PLOTS:
        sources = tuple(name for name in (entries[0] if entries else {}) if name.startswith("reward/"))
        shown = (*names, *sources) if names == ("reward",) else names
        lines = {name: [(e["round"], e[name]) for e in entries if name in e and "round" in e] for name in shown}
        if any(lines.values()):
            page.heading(heading)
            page.line_plot({name: line for name, line in lines.items() if line}, x="round", y=y)
    file = folder / "samples.jsonl"
    if file.is_file():
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        page.heading("Samples")
        page.table(
            ["round", "prompt", "reply", "reward"],
            [[one["round"], one["prompt"], one["reply"], one["reward"]] for one in samples[:8] + samples[8:][-24:]],
        )
    page.heading("Settings")
    with page.details("config.yaml"):
        page.paragraph((folder / "config.yaml").read_text(encoding="utf-8"))
    page.write(folder / "report.html")
