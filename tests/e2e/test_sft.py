"""Supervised fine-tuning as a user runs it: from an original EVA checkpoint and dialogues to a model folder."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints import open_model
from hanmo.config import load
from hanmo.errors import ConfigError, HanmoError, RecordError
from hanmo.training.callbacks import read_metrics
from hanmo.training.lifecycle import dry_run
from hanmo.training.stages.sft import SftConfig, sft
from tests import processes
from tests.parity.eva_models import EVA, MODELS
from tests.places import needs_parity

pytestmark = needs_parity("eva")
NAME = min(MODELS, key=lambda name: (EVA / MODELS[name]["vocab"]).stat().st_size, default="")

GREETINGS = ("你好", "早上好", "晚上好", "在吗")
FOODS = ("火锅", "面条", "饺子", "烤鸭", "米饭", "包子")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Dialogues of which the answers follow from the questions, in both forms."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [f"{hello}\t{hello}，今天吃什么？\t吃{food}\t{food}很好吃" for hello in GREETINGS for food in FOODS]
    (folder / "train.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    turns = lines[0].split("\t")
    (folder / "valid.jsonl").write_text(json.dumps({"turns": turns}, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def config(data: Path, out: Path, trainer: dict[str, Any] | None = None, **settings: Any) -> SftConfig:
    facts = MODELS[NAME]
    return SftConfig(
        **{
            "model": str(EVA / facts["checkpoint"]),
            "original_config": str(EVA / facts["config"]),
            "vocab": str(EVA / facts["vocab"]),
            "data": str(data),
            "out": str(out),
            "limit": 64,
            "response_limit": 16,
            "trainer": {
                "per_device_train_batch_size": 8,
                "learning_rate": 5e-3,
                "num_train_epochs": 4,
                "logging_steps": 1,
                "use_cpu": True,
                **(trainer or {}),
            },
            **settings,
        }
    )


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    return open_model(folder, device="cpu").network.state_dict()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_a_run_leaves_a_model_and_an_account_of_itself(data: Path, tmp_path: Path) -> None:
    settings = config(data, tmp_path / "run")
    outcome = sft(settings)
    run = tmp_path / "run"
    assert outcome.model == str(run / "model")
    assert (outcome.steps, outcome.rows, outcome.rejected) == (12, 23, 0)
    assert outcome.eval_loss_before is not None and outcome.eval_loss is not None
    assert outcome.eval_loss < outcome.eval_loss_before / 2

    written = load(SftConfig, None, run / "config.yaml")
    assert written.trainer.items() >= settings.trainer.items()
    assert written == SftConfig(**{**settings.__dict__, "trainer": written.trainer})
    entries = read_metrics(run / "metrics.jsonl")
    assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, 13))
    assert min(entry["eval_loss"] for entry in entries if "eval_loss" in entry) == outcome.eval_loss
    assert list((run / "tensorboard").iterdir())
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "learning_rate: 0.005" in page

    # The model folder is complete, its head untied, and as good as the run says.
    trained = state(run / "model")
    assert (trained["lm_head.weight"] - trained["word_embeds.weight"]).abs().max() > 0.1
    again = sft(config(data, tmp_path / "again", {"max_steps": 1, "learning_rate": 0.0}, model=outcome.model,
                       original_config=None, vocab=None))  # fmt: skip
    assert again.eval_loss_before == pytest.approx(outcome.eval_loss, rel=1e-5)


def test_a_dry_run_says_what_it_needs_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    result = dry_run(sft, config(data, tmp_path / "run", {"gradient_accumulation_steps": 2}))
    network = open_model(
        EVA / MODELS[NAME]["checkpoint"], config=EVA / MODELS[NAME]["config"], vocab=EVA / MODELS[NAME]["vocab"]
    ).network
    count = sum(parameter.numel() for parameter in network.parameters())
    assert result["parameters"] == result["trained_parameters"] == count
    memory = result["memory"]
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == (4 * count, 4 * count, 8 * count)
    assert memory["activations"] > 8 * 16 * network.config.d_model * 4  # at the least one hidden state
    # Gradients are added to those that are there already, so that all have their place at once.
    assert memory["total"] == sum(size for part, size in memory.items() if part not in ("total", "sharded"))
    assert (result["rows"], result["valid_rows"], result["steps"]) == (23, 1, 8)
    assert result["seconds_per_step"] > 0
    assert not (tmp_path / "run").exists()
    adapters = dry_run(sft, config(data, tmp_path / "run", lora={"rank": 2}))
    again = dry_run(sft, config(data, tmp_path / "run", {"gradient_checkpointing": True}))
    assert again["memory"]["activations"] < 0.9 * dry_run(sft, config(data, tmp_path / "run"))["memory"]["activations"]
    assert adapters["memory"]["gradients"] == 4 * adapters["trained_parameters"] < 4 * count


def test_bad_records_stop_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    with (data / "valid.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"turns": 3}\n')
    with pytest.raises(RecordError, match=r"valid\.jsonl:2: "):
        sft(config(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()

    with (data / "train.txt").open("a", encoding="utf-8") as file:
        file.write("\n" + "长" * 200 + "\t" + "短")
    outcome = sft(config(data, tmp_path / "run", {"max_steps": 1}, skip_bad=True))
    rejects = [json.loads(line) for line in (tmp_path / "run" / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert [(Path(r["file"]).name, r["line"]) for r in rejects] == [("train.txt", 24), ("valid.jsonl", 2)]
    assert rejects[0]["problem"] == "does not fit into limit=64, response_limit=16"
    assert outcome.rejected == 2

    (data / "train.txt").write_text("长" * 200 + "\t短\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"train\.txt: nothing to learn from; the first: .*train\.txt:1: does not fit"
    ):
        sft(config(data, tmp_path / "other"))


def test_adapters_are_merged_and_leave_the_rest_alone(data: Path, tmp_path: Path) -> None:
    before = open_model(
        EVA / MODELS[NAME]["checkpoint"], config=EVA / MODELS[NAME]["config"], vocab=EVA / MODELS[NAME]["vocab"],
        dtype="fp32", device="cpu",
    )  # fmt: skip
    outcome = sft(config(data, tmp_path / "run", lora={"rank": 4}))
    assert outcome.eval_loss is not None and outcome.eval_loss_before is not None
    assert outcome.eval_loss < outcome.eval_loss_before
    after = state(str(outcome.model))
    changed = {name for name, tensor in before.network.state_dict().items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.split(".")[-2] in before.family.lora_targets for name in changed)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-12" / "adapter_model.safetensors").exists()
    # What was merged is what was trained.
    again = sft(config(data, tmp_path / "again", {"max_steps": 1}, model=str(outcome.model), original_config=None,
                       vocab=None))  # fmt: skip
    assert again.eval_loss_before == pytest.approx(outcome.eval_loss, rel=1e-4)


def test_frozen_layers_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    outcome = sft(config(data, tmp_path / "run", {"max_steps": 2}, freeze=0.5))
    before = open_model(
        EVA / MODELS[NAME]["checkpoint"], config=EVA / MODELS[NAME]["config"], vocab=EVA / MODELS[NAME]["vocab"],
        dtype="fp32", device="cpu",
    ).network  # fmt: skip
    after = state(str(outcome.model))
    for name, tensor in before.state_dict().items():
        stack, _, rest = name.partition(".blocks.")
        count = {"encoder": before.config.num_layers, "decoder": before.config.num_decoder_layers}.get(stack, 0)
        frozen = bool(rest) and int(rest.split(".")[0]) < int(0.5 * count)
        assert torch.equal(tensor, after[name]) == (frozen or name == "role_embeds.weight"), name


def test_a_new_model_from_a_size(data: Path, tmp_path: Path) -> None:
    small = {"d_model": 32, "d_ff": 64, "num_heads": 2, "d_kv": 16, "num_layers": 1, "num_decoder_layers": 2}
    settings = config(
        data, tmp_path / "run", {"max_steps": 2}, model="init:eva2.0-base", original_config=None, shape=small
    )
    outcome = sft(settings)
    opened = open_model(str(outcome.model), device="cpu")
    assert {key: getattr(opened.network.config, key) for key in small} == small
    assert opened.network.config.attn_scale
    # The same seed gives the same model.
    other = sft(SftConfig(**{**settings.__dict__, "out": str(tmp_path / "other")}))
    assert largest_difference(state(str(outcome.model)), state(str(other.model))) == 0.0
    with pytest.raises(ConfigError, match="unknown setting of shape 'd_modl': did you mean d_model"):
        sft(SftConfig(**{**settings.__dict__, "out": str(tmp_path / "x"), "shape": {"d_modl": 32}}))


SAVING = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 10}


def command(data: Path, out: Path, *more: str) -> list[str]:
    facts = MODELS[NAME]
    settings = {**SAVING, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "logging_steps": 1, "use_cpu": True}
    return [
        sys.executable, "-m", "hanmo", "train", "sft", str(EVA / facts["checkpoint"]), str(data), str(out),
        f"original_config={EVA / facts['config']}", f"vocab={EVA / facts['vocab']}", "--preset", "none", "limit=64",
        *(f"trainer.{key}={str(value).lower()}" for key, value in settings.items()), *more,
    ]  # fmt: skip


def run_until(arguments: list[str], checkpoint: Path, number: int) -> subprocess.CompletedProcess[str]:
    """Run, and send a signal as soon as a checkpoint has appeared."""
    with processes.started(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        processes.wait_until(process, checkpoint.exists)
        process.send_signal(number)
        output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


@pytest.mark.slow
def test_killed_and_stopped_runs_resume_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole = processes.run(command(data, tmp_path / "whole", "--json"), check=True)
    assert json.loads(whole.stdout)["steps"] == SAVING["max_steps"]

    out = tmp_path / "cut"
    arguments = command(data, out, "--json")
    killed = run_until(arguments, out / "checkpoints" / "checkpoint-2", signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    refused = processes.run(arguments)
    assert refused.returncode == 2
    assert "--resume it" in refused.stderr
    changed = processes.run([*arguments, "--resume", "limit=60"])
    assert changed.returncode == 2
    assert "limit was 64 and is now 60" in changed.stderr

    stopped = run_until([*arguments, "--resume"], out / "checkpoints" / "checkpoint-4", signal.SIGTERM)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    result = json.loads(stopped.stdout)
    assert result["signal"] == signal.SIGTERM and result["model"] is None
    assert (out / "checkpoints" / f"checkpoint-{result['steps']}").is_dir()
    assert f"stopped after step {result['steps']}; --resume" in stopped.stderr

    ended = processes.run([*arguments, "--resume"], check=True)
    assert json.loads(ended.stdout)["steps"] == SAVING["max_steps"]
    assert largest_difference(state(tmp_path / "whole" / "model"), state(out / "model")) == 0.0
    steps = [entry["step"] for entry in read_metrics(out / "metrics.jsonl") if "loss" in entry]
    assert steps == list(range(1, 11))
    over = processes.run([*arguments, "--resume"])
    assert over.returncode == 2
    assert "a run that is over" in over.stderr


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_are_as_good_as_one(data: Path, tmp_path: Path, accumulation: int) -> None:
    """The same global batch on two processes (gloo): the same losses, gradients and weights."""
    one, two = tmp_path / "one", tmp_path / "two"
    processes.run(command(data, one, "--json"), check=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hanmo"]
    batch = [f"trainer.per_device_train_batch_size={4 // accumulation}"]
    batch += [f"trainer.gradient_accumulation_steps={accumulation}"]
    result = processes.run([*launcher, *command(data, two, "--json", *batch)[3:]], check=True)
    assert json.loads(result.stdout)["steps"] == SAVING["max_steps"]  # printed by one process only
    assert len(list((two / "tensorboard").iterdir())) == 1
    for name in ("loss", "grad_norm", "eval_loss"):
        alone, together = ([e[name] for e in read_metrics(run / "metrics.jsonl") if name in e] for run in (one, two))
        assert together == pytest.approx(alone, rel=1e-4), name
    # Adam divides small gradients by their own size, so rounding differences reach the weights enlarged.
    assert largest_difference(state(one / "model"), state(two / "model")) < 1e-3


@pytest.mark.slow
def test_the_command_line(data: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "200"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        arguments = command(data, tmp_path / "run", *more)
        return processes.run(arguments, env=environment)

    dry = run("--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "23 to train on, 1 to validate, 0 not used" in dry.stdout
    assert not (tmp_path / "run").exists()
    wrong = run("trainer.learning_rat=1")
    assert wrong.returncode == 2
    assert "did you mean learning_rate?" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    file = tmp_path / "sft.yaml"
    file.write_text("limit: 20\nfreeze: 2\n")
    assert "freeze=2.0: must be from 0" in run("--config", str(file)).stderr
    unknown = run("--preset", "publishd")
    assert unknown.returncode == 2
    assert "did you mean published?" in unknown.stderr


def test_a_model_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(HanmoError, match="none"):
        sft(config(data, tmp_path / "run", model=str(tmp_path / "none")))
