"""Run folders and the settings that transformers' Trainer gets."""

import json
import os
import shutil
import sys
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from hanmo.checkpoints import save_model
from hanmo.cli.train import read_settings, stage_command
from hanmo.errors import ConfigError, RecordError
from hanmo.families import NAMES, presets
from hanmo.training.arguments import arguments, default_settings
from hanmo.training.callbacks import read_metrics
from hanmo.training.config import TRAINER
from hanmo.training.data_files import find_files
from hanmo.training.lifecycle import Outcome
from hanmo.training.opening import family_name, find_size, new_model, open_for_training
from hanmo.training.run_folder import begin
from hanmo.training.schedules import rate_factor
from hanmo.training.stages import load_stage
from hanmo.training.stages.dpo import DpoConfig
from hanmo.training.stages.grpo import GrpoConfig
from hanmo.training.stages.pretrain import PretrainConfig
from hanmo.training.stages.sft import SftConfig, sft
from tests import processes
from tests.unit.tiny import SENTENCES, tiny

WANDB = """
import json, os, types

run = None

class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)

config = Config()

def _write(entry):
    with open(os.environ["WANDB_LOG"], "a") as file:
        file.write(json.dumps(entry) + chr(10))

def init(**settings):
    global run
    run = types.SimpleNamespace(_label=lambda **labels: None, summary={})
    _write({"init": os.environ["WANDB_MODE"]})

def define_metric(*names, **settings):
    pass

def log(values):
    _write({"step": values["train/global_step"], "keys": list(values)})

def finish():
    pass
"""


def test_files_of_a_data_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no train\.txt or train\.jsonl"):
        find_files(str(tmp_path), None)
    train = tmp_path / "train.jsonl.gz"
    train.touch()
    assert find_files(str(tmp_path), None) == (train, None)
    (tmp_path / "dev.txt").touch()
    assert find_files(str(tmp_path), None) == (train, None)  # a split to which no record has fallen
    (tmp_path / "dev.txt").write_text("你好\t再见\n", encoding="utf-8")
    assert find_files(str(tmp_path), None) == (train, tmp_path / "dev.txt")
    assert find_files(str(tmp_path), "else.txt") == (train, Path("else.txt"))
    assert find_files(str(train), None) == (train, None)
    (tmp_path / "valid.txt").touch()
    with pytest.raises(ConfigError, match=r"valid\.txt and dev\.txt; name the file you mean"):
        find_files(str(tmp_path), None)
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_files(str(tmp_path / "none"), None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, True), ({"bf16": False}, False), ({"fp16": True}, None), ({"use_cpu": True}, None)],
    ids=["nothing", "fp32", "fp16", "a CPU"],
)
def test_a_gpu_that_knows_bf16_trains_in_it(
    given: dict[str, Any], expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "bf16" not in default_settings({}, False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert "bf16" not in default_settings({}, False)  # a GPU that only emulates it
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert default_settings(given, False).get("bf16") is expected
    policy = GrpoConfig(model="m", data="d", rewards=("a:b",), trainer=given)
    for config in (DpoConfig(model="m", data="d", trainer=given), policy):
        assert config.trainer_settings(False).get("bf16") is expected


def test_trainer_settings_follow_the_validation_file() -> None:
    assert default_settings({}, False)["eval_strategy"] == "no"
    assert "load_best_model_at_end" not in default_settings({}, False)
    by_epoch = default_settings({}, True)
    assert (by_epoch["eval_strategy"], by_epoch["save_strategy"], by_epoch["load_best_model_at_end"]) == (
        "epoch",
        "epoch",
        True,
    )
    by_steps = default_settings({"eval_strategy": "steps", "eval_steps": 7}, True)
    assert (by_steps["save_strategy"], by_steps["save_steps"]) == ("steps", 7)
    assert default_settings({"save_total_limit": 9}, True)["save_total_limit"] == 9
    with pytest.raises(ConfigError, match="there is no validation file"):
        default_settings({"eval_strategy": "steps"}, False)


def test_what_transformers_refuses_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer: .*save"):
        arguments(tmp_path, default_settings({"eval_strategy": "steps", "save_strategy": "epoch"}, True))


@pytest.mark.parametrize(
    "accumulation, published, last", [(1, False, 0.1), (1, True, 0.1), (4, False, 0.1), (4, True, 0.775)]
)
def test_the_schedule_counts_steps_unless_published(
    tmp_path: Path, accumulation: int, published: bool, last: float
) -> None:
    args = arguments(tmp_path, {"gradient_accumulation_steps": accumulation, "warmup_steps": 0.09, "use_cpu": True})
    at = rate_factor("linear", args, published)
    assert at is not None
    assert at(5, 100) == pytest.approx(0.5)  # a warm-up of int(0.09 x 100) + 1 = 10 steps
    assert at(100, 100) == pytest.approx(last)
    assert rate_factor(None, args, published) is None
    fixed = rate_factor("linear", replace_warmup(args, 20), published)
    assert fixed is not None
    assert fixed(5, 100) == pytest.approx(0.25)


def replace_warmup(args: Any, steps: int) -> Any:
    args.warmup_steps = steps
    return args


@dataclass(frozen=True)
class Stage:
    limit: int = 1
    trainer: dict[str, Any] = field(default_factory=dict, metadata=TRAINER)


def test_a_run_is_not_begun_twice(tmp_path: Path) -> None:
    folder, stage = tmp_path / "run", Stage(3, {"learning_rate": 1e-4})
    assert begin(folder, stage, resume=False) is None
    assert begin(folder, stage, resume=True) is None  # killed before its first checkpoint
    (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-12").mkdir()
    with pytest.raises(ConfigError, match=r"stopped \(checkpoint-12\); --resume it"):
        begin(folder, stage, resume=False)
    assert begin(folder, stage, resume=True) == str(folder / "checkpoints" / "checkpoint-12")
    with pytest.raises(ConfigError, match="other settings: limit was 3 and is now 4"):
        begin(folder, replace(stage, limit=4), resume=True)
    (folder / "model").mkdir()
    with pytest.raises(ConfigError, match="a run that is over"):
        begin(folder, stage, resume=True)


@pytest.mark.parametrize("line", ["[1]", "{}", '{"step": "1"}', '{"step": 1, "loss": "x"}', "{", "\\ud83d"])
def test_a_damaged_line_of_the_log_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": null}}\n{line}\n{{"step"')
    with pytest.raises(RecordError, match=r"metrics\.jsonl:2: damaged: expected numbers by name, \"step\" among them"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_run_resumes_with_the_lists_it_was_given(tmp_path: Path) -> None:
    """What config.yaml gives back are tuples."""
    config = SftConfig("model", "data", lora={"rank": 2, "targets": ["q_proj"]})
    begin(tmp_path / "run", config, resume=False)
    begin(tmp_path / "run", config, resume=True)
    with pytest.raises(ConfigError, match=r"settings: lora\.targets was \('q_proj',\) and is now \('v_proj',\)$"):
        begin(tmp_path / "run", replace(config, lora={"rank": 2, "targets": ["v_proj"]}), resume=True)


def test_resuming_with_other_settings_names_only_what_differs(tmp_path: Path) -> None:
    """It printed both mappings of trainer whole."""
    given = {"learning_rate": 1e-4, "optim_args": {"a": 1}, "seed": 3, "warmup_steps": 2}
    begin(tmp_path / "run", Stage(3, given), resume=False)
    other = {"learning_rate": 2e-4, "optim_args": {"a": 1}, "seed": 3, "max_steps": 7}
    with pytest.raises(ConfigError) as raised:
        begin(tmp_path / "run", Stage(3, other), resume=True)
    assert str(raised.value).partition("other settings: ")[2].split("; ") == [
        "trainer.learning_rate was 0.0001 and is now 0.0002",
        "trainer.warmup_steps was 2 and is now not given",
        "trainer.max_steps was not given and is now 7",
    ]


def test_places_of_a_run_may_have_any_name() -> None:
    """Characters beyond U+FFFF became halves of characters, which no file system takes."""
    names = ("模型𠮷", "😀 a: #b", "out\x7f'\"\\\n" + "很长 " * 60)
    config = read_settings(load_stage("sft"), names[0], names[1], [names[2]], None, "none")
    assert (config.model, config.data, config.out) == names


def test_sizes_are_found_by_name_and_alias() -> None:
    for name, family in (("eva2.0-base", "eva"), ("EVA2.0_Base", "eva")):
        assert find_size(name)[0].name == family
        assert find_size(name)[1] == "eva2.0-base"
        assert family_name(f"init:{name}") == family
    with pytest.raises(ConfigError, match=r"unknown size 'eva2\.0-bas': did you mean .*eva2\.0-base"):
        find_size("eva2.0-bas")


def test_a_new_model_asks_for_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a vocabulary: vocab=FILE"):
        new_model("eva2.0-base", {}, None)
    with pytest.raises(ConfigError, match="no such file"):
        new_model("eva2.0-base", {}, str(tmp_path / "none.txt"))
    for name in ("shape", "size"):
        model, value = ("some/folder", {"d_model": 1}) if name == "shape" else ("init:eva2.0-base", "x")
        config: Any = SftConfig(model, "data")
        with pytest.raises(ConfigError, match=name):
            open_for_training(replace(config, **{name: value}))


SFT = [(family, name) for family in NAMES for name in presets(family).get("sft", {})]


@pytest.mark.parametrize("family, name", SFT)
def test_sft_presets_are_settings(family: str, name: str, tmp_path: Path) -> None:
    from hanmo.config import load

    config = load(SftConfig, {"model": "m", "data": "d", **presets(family)["sft"][name]})
    arguments(tmp_path, default_settings(config.trainer, True))


PRETRAIN = [(family, name) for family in NAMES for name in presets(family).get("pretrain", {})]


@pytest.mark.parametrize("family, name", PRETRAIN)
def test_pretraining_presets_are_settings(family: str, name: str, tmp_path: Path) -> None:
    from hanmo.config import load

    config = load(PretrainConfig, {"model": "m", "data": "d", **presets(family)["pretrain"][name]})
    arguments(tmp_path, default_settings(config.trainer, True))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"limit": 1}, "limit=1: must be at least 2"),
        ({"freeze": 1.0}, "freeze=1.0: must be from 0"),
        ({"lora": {"rank": -1}}, "lora.rank=-1"),
        ({"freeze": 0.5, "lora": {"rank": 2}}, "give one of them"),
        ({"selective_checkpointing": True, "trainer": {"gradient_checkpointing": True}}, "give one of them"),
    ],
)
def test_impossible_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SftConfig("m", "d", **wrong)


@pytest.mark.parametrize("kind", [SftConfig, PretrainConfig])
def test_own_settings_stay_few(kind: type[Any]) -> None:
    assert len({field.name for field in fields(kind)} - {"trainer"}) <= 23


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_either_name_of_checkpointing_reaches_the_trainer(name: str, tmp_path: Path) -> None:
    if name not in {field.name for field in fields(TrainingArguments)}:
        pytest.skip("this transformers knows activation checkpointing by its old name only")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = arguments(tmp_path, {name: True, f"{name}_kwargs": {"use_reentrant": False}})
    assert args.gradient_checkpointing and args.gradient_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.slow
def test_logs_go_to_weights_and_biases_if_asked(tmp_path: Path) -> None:
    """With a stand-in for the package: what of it transformers calls, written down. TensorBoard has its file as well."""
    package = tmp_path / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(WANDB, encoding="utf-8")
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass", encoding="utf-8")
    tiny_folder = tmp_path / "model"
    save_model(tiny("pangu", tmp_path / "vocabulary"), tiny_folder)
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": text[:5], "response": text[5:]}) for text in SENTENCES))
    result = processes.run(
        [sys.executable, "-m", "hanmo", "train", "sft", str(tiny_folder), str(data), str(tmp_path / "run"), "limit=64",
         "--preset", "none", "trainer.report_to=wandb", "trainer.max_steps=2", "trainer.logging_steps=1",
         "trainer.use_cpu=true"],
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_LOG": str(tmp_path / "log"),
             "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert logged[0] == {"init": "offline"}
    assert [entry["step"] for entry in logged if "train/loss" in entry.get("keys", [])] == [1, 2]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": text[:5], "response": text[5:]}) for text in SENTENCES[:2] * 2))
    save_model(tiny("pangu", tmp_path / "vocabulary"), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    still = {name: 0.0 if "drop" in name else value for name, value in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(still))  # compiled draws are others
    losses = []
    for compiled in (False, True):
        torch._dynamo.utils.counters.clear()
        out = tmp_path / str(compiled)
        given = {"max_steps": 2, "logging_steps": 1, "use_cpu": True, "torch_compile": compiled, "save_strategy": "no"}
        given |= {"torch_compile_backend": "aot_eager"} if compiled else {}  # traced; without a C++ compiler
        sft(SftConfig(model=str(tmp_path / "model"), data=str(data), out=str(out), limit=64, trainer=given))
        assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == compiled
        losses.append([entry["loss"] for entry in read_metrics(out / "metrics.jsonl") if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 2


def test_a_run_shorter_than_logging_steps_reports_its_loss(tmp_path: Path) -> None:
    save_model(tiny("eva", tmp_path / "vocabulary"), tmp_path / "model")
    (tmp_path / "train.txt").write_text("你好吗\t我很好\n" * 4, encoding="utf-8")
    settings = {"max_steps": 2, "logging_steps": 10, "save_strategy": "no", "use_cpu": True}
    outcome = sft(
        SftConfig(str(tmp_path / "model"), str(tmp_path / "train.txt"), str(tmp_path / "run"), trainer=settings)
    )
    logged = [entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2]
    assert outcome.train_loss == logged[0]["loss"] > 0


def test_what_libraries_print_does_not_mix_with_the_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(stage: Any, settings: Any, resume: bool) -> Outcome:
        print("a warning")
        return Outcome("runs/one", steps=1, rows=1, rejected=0, seconds=0.1)

    monkeypatch.setattr("hanmo.training.lifecycle.Stage.__call__", train)
    stage_command("sft")("init:eva2.0-base", "data", as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out)["run"] == "runs/one" and said.err == "a warning\n"


def test_a_tied_head_is_not_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the best step is loaded at the end of a run, nor where one goes on; what is missing still is."""
    said: list[str] = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", lambda message, *rest: said.append(str(message)))
    save_model(tiny("pangu", tmp_path / "vocabulary"), tmp_path / "model")
    (tmp_path / "train.txt").write_text("你好吗\t我很好\n" * 4, encoding="utf-8")
    times = {
        f"{name}_{what}": value for name in ("save", "eval") for what, value in (("strategy", "steps"), ("steps", 1))
    }
    settings = {"max_steps": 2, "use_cpu": True, **times}
    config = SftConfig(str(tmp_path / "model"), str(tmp_path / "train.txt"), str(tmp_path / "run"), valid=str(tmp_path / "train.txt"), trainer=settings)  # fmt: skip
    sft(config)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    sft(config, resume=True)
    assert not [message for message in said if "missing" in message]
    weights = tmp_path / "run" / "checkpoints" / "checkpoint-2" / "model.safetensors"
    kept = load_file(weights)
    lost = next(name for name in kept if name.endswith("q_proj.weight"))
    save_file({name: tensor for name, tensor in kept.items() if name != lost}, weights, metadata={"format": "pt"})
    shutil.rmtree(tmp_path / "run" / "model")
    sft(config, resume=True)
    assert [message for message in said if f"missing keys in the checkpoint model loaded: ['{lost}']" in message]
