"""Pretraining as a user runs it, for every family: it learns, resumes to the same weights, and runs in two processes."""

import json
import random
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hanmo.checkpoints import open_model, save_model
from hanmo.errors import ConfigError
from hanmo.training.callbacks import read_metrics
from hanmo.training.lifecycle import dry_run
from hanmo.training.stages.pretrain import PretrainConfig, pretrain
from tests import processes
from tests.unit.tiny import NAMES, SENTENCES, tiny

SAVING = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "max_steps": 9}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/FAMILY, text/ and talk/ with training and validation files."""
    place, draw = tmp_path_factory.mktemp("pretrain"), random.Random(0)
    for name in NAMES:
        save_model(tiny(name, place / "vocabularies" / name), place / "models" / name)
    (place / "text").mkdir()
    (place / "talk").mkdir()
    for split, count in (("train", 40), ("valid", 6)):
        texts = ["".join(draw.choices(SENTENCES[1:], k=draw.randint(1, 6))) for _ in range(count)]
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (place / "text" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        talks = ["\t".join(draw.choices(SENTENCES[1:], k=draw.randint(2, 4))) for _ in range(count)]
        (place / "talk" / f"{split}.txt").write_text("\n".join(talks), encoding="utf-8")
    return place


def config(
    places: Path, name: str, out: Path, trainer: dict[str, Any] | None = None, **settings: Any
) -> PretrainConfig:
    data = "talk" if name == "eva" else "text"
    defaults = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "use_cpu": True,
    }
    return PretrainConfig(
        **{
            "model": str(places / "models" / name),
            "data": str(places / data),
            "out": str(out),
            "limit": 40,
            "plain": "dialogue" if name == "eva" else "text",
            "trainer": {**defaults, **SAVING, **(trainer or {})},
            **settings,
        }
    )


class KilledError(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KilledError


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    return open_model(folder, device="cpu").network.state_dict()


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_resumes_to_the_same_weights(name: str, places: Path, tmp_path: Path) -> None:
    """Memory of streams, dropout, and what is drawn of documents included."""
    whole = pretrain(config(places, name, tmp_path / "whole"))
    assert whole.eval_loss is not None and whole.eval_loss_before is not None
    assert whole.eval_loss < whole.eval_loss_before - 0.3
    with pytest.raises(KilledError):
        pretrain(config(places, name, tmp_path / "cut"), show=Kill(5))
    torch.manual_seed(99)
    resumed = pretrain(config(places, name, tmp_path / "cut"), resume=True)
    ours, theirs = state(str(whole.model)), state(str(resumed.model))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    losses = [
        [entry["loss"] for entry in read_metrics(tmp_path / run / "metrics.jsonl") if "loss" in entry]
        for run in ("whole", "cut")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 9


def test_wrong_settings(places: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown objective 'span': did you mean spans"):
        pretrain(config(places, "glm", tmp_path, objectives={"span": 1.0}))
    with pytest.raises(ConfigError, match="pangu has a single one"):
        pretrain(config(places, "pangu", tmp_path, objectives={"spans": 1.0}))
    with pytest.raises(ConfigError, match="rows are too few for 4000 streams"):
        pretrain(config(places, "transformer_xl", tmp_path, {"per_device_train_batch_size": 4000}))
    assert dry_run(pretrain, config(places, "transformer_xl", tmp_path / "none"))["steps"] == 9
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name, launched", [("transformer_xl", "nproc"), ("pangu", "nproc"), ("pangu", "hostfile")])
def test_two_processes_are_as_good_as_one(name: str, launched: str, places: Path, tmp_path: Path) -> None:
    """Two processes of one group, and two groups of one process as on two machines, by the lines of a hostfile."""
    model = tmp_path / "model"
    opened = tiny(name, tmp_path / "vocabulary")
    for key in list(opened.network.config.to_dict()):
        if key.endswith("dropout") or key.endswith("pdrop"):
            setattr(opened.network.config, key, 0.0)
    save_model(opened, model)
    runs = []
    for count in (1, 2):
        batch = 4 // count
        given = {
            **SAVING,
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": batch,
            "logging_steps": 1,
            "use_cpu": "true",
        }
        out = tmp_path / str(count)
        arguments = ["train", "pretrain", str(model), str(places / "text"), str(out), "limit=40", "--preset", "none"]
        arguments += [f"trainer.{key}={value}" for key, value in given.items()]
        if count == 2 and launched == "hostfile":
            run_lines(arguments, tmp_path / "hosts")
        else:
            command = [sys.executable, "-m", "hanmo", *arguments, "--nproc", str(count)]
            processes.run(command, check=True)
        runs.append(read_metrics(out / "metrics.jsonl"))
    for figure in ("loss", "grad_norm", "eval_loss"):
        one, two = ([entry[figure] for entry in run if figure in entry] for run in runs)
        assert len(one) > 3 and two == pytest.approx(one, rel=1e-4), figure


def run_lines(arguments: list[str], hosts: Path) -> None:
    """What ``--hostfile`` prints for two names of this machine, each line run as it stands."""
    hosts.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    command = [sys.executable, "-m", "hanmo", *arguments, "--hostfile", str(hosts)]
    printed = processes.run(command, check=True).stdout.splitlines()
    assert [line.partition(": ")[0] for line in printed] == ["localhost", "127.0.0.1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"--master_port={free.getsockname()[1]}"
    commands = []
    for line in printed:
        program, *rest = shlex.split(line.partition(": ")[2])
        assert program == "torchrun" and "--nnodes=2" in rest
        rest = [port if word.startswith("--master_port=") else word for word in rest]
        # torchrun, found without a PATH
        commands.append(([sys.executable, "-m", "torch.distributed.run", *rest], None))
    for done in processes.together(commands, stderr=subprocess.STDOUT):
        assert done.returncode == 0, done.stdout[-3000:]
