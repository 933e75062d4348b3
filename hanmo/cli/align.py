"""hanmo train reward, dpo, grpo, ppo: learn from preferences and rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hanmo.cli.common import Json, emit
from hanmo.cli.train import Data, File, Model, Preset, Rest, Resume, read_settings, run

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the settings and stop.")]


def reward(
    model: Model,
    data: Data,
    rest: Rest = None,
    config: File = None,
    preset: Preset = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a reward model on pairs of a better and a worse answer.

    Data is JSON lines: {"prompt", "answers": [{"answer", "score"}, ...], "prefix"}, or {"prompt", "chosen", "rejected"} and
    its usual variants. Start from the model that sft has made.

    Example: hanmo train reward runs/sft/model data/pairs.jsonl runs/reward trained_layers=0.3
    """
    from hanmo.training.stages.reward import RewardConfig, train_reward

    _run("reward", RewardConfig, train_reward, model, data, rest or [], config, preset, dry_run, resume, as_json)


def dpo(
    model: Model,
    data: Data,
    rest: Rest = None,
    config: File = None,
    preset: Preset = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Learn from pairs of answers without a reward model (DPO, or loss=ipo).

    Data is that of hanmo train reward.

    Example: hanmo train dpo runs/sft/model data/pairs.jsonl runs/dpo beta=0.1 trainer.learning_rate=1e-6
    """
    from hanmo.training.stages.dpo import DpoConfig
    from hanmo.training.stages.dpo import dpo as train

    _run("dpo", DpoConfig, train, model, data, rest or [], config, preset, dry_run, resume, as_json)


def grpo(
    model: Model,
    data: Data,
    rest: Rest = None,
    config: File = None,
    preset: Preset = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Learn from rewards, each reply judged against others to the same prompt; needs no critic.

    Data holds the prompts; responses in it are not used. Rewards are reward models or functions of (prompts, replies).

    Example: hanmo train grpo runs/sft/model data/prompts.jsonl runs/grpo rewards=[my_rewards:ends_well] group=8
    """
    from hanmo.training.stages.grpo import GrpoConfig
    from hanmo.training.stages.grpo import grpo as train

    _run("grpo", GrpoConfig, train, model, data, rest or [], config, preset, dry_run, resume, as_json)


def ppo(
    model: Model,
    data: Data,
    rest: Rest = None,
    config: File = None,
    preset: Preset = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Learn from rewards with a critic and a KL penalty (PPO).

    Data holds the prompts; responses in it are not used. Rewards are reward models or functions of (prompts, replies).

    Example: hanmo train ppo runs/sft/model data/prompts.jsonl runs/ppo rewards=[runs/reward/model] beta=0.1
    """
    from hanmo.training.stages.ppo import PpoConfig
    from hanmo.training.stages.ppo import ppo as train

    _run("ppo", PpoConfig, train, model, data, rest or [], config, preset, dry_run, resume, as_json)


def _run(
    name: str, kind: Any, train: Any, model: str, data: str, rest: list[str], file: Path | None, preset: str | None,
    dry: bool, resume: bool, as_json: bool,
) -> None:  # fmt: skip
    settings = read_settings(name, kind, model, data, rest, file, preset)
    if dry:
        from hanmo.config import dump

        emit({"config": dump(settings)}, as_json, lambda result: print(result["config"], end=""))
    else:
        run(train, settings, resume, as_json, _show)


def _show(result: dict[str, Any]) -> None:
    told = {name: value for name, value in result.items() if value is not None and name not in ("run", "model")}
    for name, value in told.items():
        print(f"{name:16} {value:,.4g}" if isinstance(value, float) else f"{name:16} {value:,}")
    if result["model"]:
        print(f"model            {result['model']}")
        print(f"report           {result['run']}/report.html")
