"""The one life cycle: a dry run of every stage, and the commands that go on from it."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState
from typer.main import get_command

from hanmo.cli import app
from hanmo.errors import ConfigError
from hanmo.training.callbacks import Progress
from hanmo.training.lifecycle import dry_run
from hanmo.training.stages import NAMES, load_stage
from tests.devices.stages import prepare


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and data of every kind."""
    folder = tmp_path_factory.mktemp("made")
    prepare(folder, "pangu")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_measures_a_step_and_writes_nothing(name: str, made: Path, tmp_path: Path) -> None:
    data = {"pretrain": "texts", "sft": "prompts", "reward": "pairs", "dpo": "pairs", "kto": "pairs"}.get(
        name, "prompts"
    )
    given: dict[str, Any] = {"per_device_train_batch_size": 2, "use_cpu": True}
    settings: dict[str, Any] = {"limit": 64, "trainer": {**given, "max_steps": 3}}
    if name in ("grpo", "ppo"):
        settings |= {"rewards": ("tests.devices.stages:different_characters",), "rounds": 2, "samples": 8}
        settings |= {"generation": {"max_new_tokens": 4}, "trainer": given}
    stage, run = load_stage(name), tmp_path / "run"
    needs = dry_run(stage, stage.config(str(made / "model"), str(made / data), str(run), **settings))
    assert not run.exists() and not list(tmp_path.iterdir())
    assert needs["steps"] == (8 if name in ("grpo", "ppo") else 3)
    assert 0 < needs["trained_parameters"] <= needs["parameters"]
    assert min(needs["memory"].values()) > 0 and needs["seconds_per_step"] > 0
    assert needs["rows"] > 0 and needs["rejected"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_next_commands_exist(name: str) -> None:
    commands = load_stage(name).then
    assert commands
    for line in commands:
        command: Any = get_command(app)
        for word in shlex.split(line)[1:]:
            if not hasattr(command, "commands"):
                break
            command = command.commands[word]


def test_progress_without_a_terminal_is_a_hundred_lines_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 1,000 logged steps; evaluations and the last step always have a line."""
    progress, control = Progress(("loss", "eval_loss", "reward")), TrainerControl()
    state: Any = TrainerState(max_steps=1000, is_world_process_zero=True)
    args: Any = None
    progress.on_train_begin(args, state, control)
    for state.global_step in range(1, 1001):
        progress.on_log(args, state, control, {"loss": 1.5, "reward": 0.25, "epoch": 0.1})
        if state.global_step == 15:
            progress.on_log(args, state, control, {"eval_loss": 2.0})
    lines = capsys.readouterr().err.splitlines()
    assert 100 <= len(lines) <= 102
    assert lines[0].startswith("step 1/1000: loss 1.5, reward 0.25, ") and lines[0].endswith(" left")
    assert [line for line in lines if "eval_loss 2" in line] and lines[-1] == "step 1000/1000: loss 1.5, reward 0.25"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("pretrain", "sft")])
def test_alignment_refuses_a_cut_model_and_says_why(name: str) -> None:
    rewards = {"rewards": ("a:b",)} if name in ("grpo", "ppo") else {}
    with pytest.raises(ConfigError, match=r"tensor_parallel=2: must be 1: .* whole network .* --nproc"):
        load_stage(name).config("m", "d", tensor_parallel=2, **rewards)
