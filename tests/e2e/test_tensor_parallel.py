"""A model cut over two processes: the same replies, the same losses, and messages where it cannot be cut."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.training.trainable import LoraSettings, add_lora, save_adapter, switch_dropout_off
from hanmo.training.trainer import RowTrainer
from tests import processes
from tests.golden.make import FOLDER
from tests.ranks import RANKS, ROOT, on_ranks
from tests.unit.checkpoint_files import write_megatron
from tests.unit.test_packing import examples
from tests.unit.tiny import NAMES
from tests.unit.transformers_models import write_model

pytestmark = pytest.mark.slow
TALK = "你好\n今天天气怎么样？\nclear\n/set num_beams 2\n明天去哪里玩？\n"


def hanmo(*arguments: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hanmo", *map(str, arguments)]
    return processes.run(command, input=said, env=environment, timeout=500)


def chat(model: Path, *options: str | Path) -> str:
    done = hanmo("chat", model, "--seed", "3", "max_new_tokens=8", *options, said=TALK)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_chat_over_two_ranks_says_the_same(name: str) -> None:
    alone = chat(FOLDER / name, "--dtype", "fp32")
    assert alone.count("Sys >>> ") == 3
    assert chat(FOLDER / name, "--dtype", "fp32", "--tensor-parallel", "2") == alone


def test_t5_by_our_plan(tmp_path: Path) -> None:
    """Transformers has no plan for T5's form; its position bias has a column for each head."""
    model = write_model("mt5", tmp_path / "mt5")
    assert chat(model, "--tensor-parallel", "2") == chat(model)


def test_chat_with_a_checkpoint_split_in_two(tmp_path: Path) -> None:
    """The unsplit original in one process; its two halves in one process, and in two, also under torchrun itself."""
    whole = write_megatron(tmp_path / "whole")
    facts = {"config": whole / "model_config.json", "vocab": whole / "vocab.txt"}
    convert(whole, tmp_path / "split", to="original", ranks=2, **facts)
    given = [item for key, value in facts.items() for item in (f"--{key}", value)]
    alone = chat(whole, *given)
    assert alone.count("Sys >>> ") == 3
    assert chat(tmp_path / "split", *given) == alone
    assert chat(tmp_path / "split", *given, "--tensor-parallel", "2") == alone
    options = ["--seed", "3", "max_new_tokens=8", *map(str, given)]
    under_torchrun = on_ranks(2, "hanmo", "chat", str(tmp_path / "split"), *options, input=TALK)
    assert under_torchrun.stdout == alone


def test_generate_writes_its_file_once(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("你好\n今天天气怎么样？\n明天去哪里玩？\n", encoding="utf-8")
    told = []
    for ranks in ("1", "2"):
        file = tmp_path / f"{ranks}.jsonl"
        options = ["--input", prompts, "--output", file, "--seed", "1", "max_new_tokens=8", "--batch-size", "2"]
        done = hanmo("generate", FOLDER / "pangu", *options, "--tensor-parallel", ranks)
        assert done.returncode == 0, done.stderr
        assert "3 results" in done.stderr
        told.append([json.loads(line)["generation"] for line in file.read_text(encoding="utf-8").splitlines()])
    assert told[0] == told[1] and len(told[0]) == 3


def test_heads_that_do_not_divide_are_named_with_both_numbers() -> None:
    done = hanmo("chat", FOLDER / "glm", "--tensor-parallel", "3", said=TALK)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "hanmo: tensor parallelism over 3 ranks: num_attention_heads=4 does not divide by 3; every rank holds whole heads"
    )


def without_dropout(name: str, folder: Path) -> Path:
    """The model as it is, but that no rank draws what another does not."""
    shutil.copytree(FOLDER / name, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {key: 0.0 for key in config if "dropout" in key or key.endswith("_pdrop")}
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


def data_of(name: str, stage: str, folder: Path) -> Path:
    file = folder / "train.jsonl"
    pairs = [("今天天气怎么样？", "今天天气真不错。"), ("明天去哪里玩？", "我们去吃火锅。"), ("你好", "谢谢你。")] * 2
    if stage != "pretrain":
        lines = [json.dumps({"prompt": p, "response": r}) for p, r in pairs]
    elif name == "eva":
        lines = [json.dumps({"turns": list(pair)}) for pair in pairs]
    else:
        lines = [json.dumps({"text": (p + r) * 4}) for p, r in pairs]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def train(name: str, stage: str, model: Path, folder: Path, ranks: int, *more: str) -> list[dict[str, Any]]:
    """The log of a run of two epochs; Transformer-XL carries its memory along in pretraining and in "streams"."""
    data = data_of(name, stage, folder)
    settings = [
        "limit=" + ("16" if name == "transformer_xl" and stage in ("pretrain", "streams") else "64"),
        *(["streams=true"] if stage == "streams" else []),
        f"valid={data}", "trainer.num_train_epochs=2", "trainer.per_device_train_batch_size=2",
        "trainer.gradient_accumulation_steps=2", "trainer.logging_steps=1", "trainer.learning_rate=0.001",
        "trainer.per_device_eval_batch_size=4", "trainer.max_grad_norm=0.5",
        "trainer.adam_epsilon=1e-4",  # below it is rounding, all the gradient that some biases have: Adam leaves it alone
    ]  # fmt: skip
    command = ["train", "pretrain" if stage == "pretrain" else "sft", model, data, folder / "run", "--preset", "none"]
    done = hanmo(*command, "--tensor-parallel", str(ranks), *settings, *more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


STAGES = [(name, stage) for stage in ("sft", "pretrain") for name in NAMES] + [("transformer_xl", "streams")]


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_training_over_two_ranks_is_training_in_one(name: str, stage: str, tmp_path: Path) -> None:
    """Losses, gradient norms before clipping, evaluation; and the folder that it leaves is whole, like any other."""
    runs = []
    for ranks, folder in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        folder.mkdir()
        model = without_dropout(name, folder / "start")
        runs.append(train(name, stage, model, folder, ranks, "trainer.save_strategy='no'"))
    alone, together = runs
    assert len(alone) == len(together) and any("eval_loss" in entry for entry in alone)
    compared = 0
    for one, two in zip(alone, together, strict=True):
        for key in ("loss", "grad_norm", "eval_loss"):
            if key in one:
                assert two[key] == pytest.approx(one[key], rel=2e-4), (key, one["step"])
                compared += 1
    assert compared > 6
    models = [
        open_model(tmp_path / run / "run" / "model", dtype="fp32", device="cpu").network for run in ("one", "two")
    ]
    before = open_model(FOLDER / name, dtype="fp32", device="cpu").network.state_dict()
    moved = 0.0
    for (key, tensor), other in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(other, tensor, atol=2e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
        moved = max(moved, float((tensor - before[key]).abs().max()))
    assert moved > 1e-3
    config = json.loads((tmp_path / "two" / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert "distributed_config" not in config


@pytest.mark.parametrize("name", [name for name in NAMES if name != "huggingface"])
def test_the_halves_of_an_original_talk_and_learn_over_two_ranks(name: str, tmp_path: Path) -> None:
    """As the whole does in one process."""
    whole, halves = without_dropout(name, tmp_path / "whole"), tmp_path / "halves"
    config = whole / "config.json"
    report = convert(whole, halves, to="original", ranks=2)
    assert len(report["files"]) == 2
    given = ("--config", config, "--dtype", "fp32", "--tensor-parallel", "2")
    assert chat(halves, *given) == chat(whole, "--dtype", "fp32")
    runs = []
    for model, ranks, more in ((whole, 1, []), (halves, 2, [f"original_config={config}"])):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        runs.append(train(name, "sft", model, folder, ranks, "trainer.save_strategy='no'", *more))
    alone, together = ([entry[key] for entry in run for key in ("loss", "grad_norm") if key in entry] for run in runs)
    assert together == pytest.approx(alone, rel=2e-4) and len(alone) > 6


SAVING = [
    "trainer.max_steps=6",
    *(f"trainer.{what}_strategy=steps" for what in ("save", "eval")),
    "trainer.eval_steps=2",
]
RESUMED = [(name, "sft") for name in NAMES] + [
    ("transformer_xl", "streams"),
    ("eva", "pretrain"),
    ("pangu", "adapters"),
]


@pytest.mark.parametrize(("name", "stage"), RESUMED)
def test_a_stopped_run_over_two_ranks_resumes_to_the_same_weights(name: str, stage: str, tmp_path: Path) -> None:
    """Bit by bit, with dropout, and with the best checkpoint loaded at the end."""
    more = [*SAVING, "trainer.save_total_limit=3", *(["lora.rank=4"] if stage == "adapters" else [])]
    whole = train(name, stage, FOLDER / name, tmp_path, 2, *more)
    run, kept = tmp_path / "run", tmp_path / "kept"
    (run / "model").rename(kept)
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    resumed = train(name, stage, FOLDER / name, tmp_path, 2, *more, "--resume")
    for key in ("loss", "grad_norm", "eval_loss"):
        assert [entry.get(key) for entry in resumed] == [entry.get(key) for entry in whole], key
    assert sum("loss" in entry for entry in whole) == 6
    assert (run / "model" / "model.safetensors").read_bytes() == (kept / "model.safetensors").read_bytes()
    assert (kept / "model.safetensors").read_bytes() != (FOLDER / name / "model.safetensors").read_bytes()


def adapted(folder: Path) -> None:
    """Train adapters of every linear layer that a family names, cut by columns and by rows, from a start that is known."""
    for name in NAMES:
        opened = open_model(FOLDER / name, dtype="fp32", device="cpu", tensor_parallel=RANKS)
        network = add_lora(opened.network, LoraSettings(4), opened.family.lora_targets)
        switch_dropout_off(network)
        for parameter in network.parameters():
            if parameter.requires_grad:
                start = torch.sin(torch.arange(1.0, parameter.numel() + 1)).view(parameter.shape) / 10
                if isinstance(parameter, DTensor):
                    start = distribute_tensor(start, parameter.device_mesh, parameter.placements)
                parameter.data.copy_(start)
        args = TrainingArguments(
            str(folder / name / "run"), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            optim="sgd", learning_rate=0.05, max_grad_norm=0.5, logging_steps=1, save_strategy="no", report_to="none",
            remove_unused_columns=False, label_names=["labels"], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = RowTrainer(network, args, examples(opened))
        trainer.train()
        tensors = trainer.final_adapter(network)
        if trainer.is_world_process_zero():
            save_adapter(network, tensors, folder / name / "adapter", str(FOLDER / name))
        save_model(replace(opened, network=trainer.final_model(network)[0]), folder / name)
        if trainer.is_world_process_zero():
            trainer.state.save_to_json(str(folder / name / "state.json"))


def test_adapters_over_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    """Losses, gradient norms before clipping, and what is left when they are merged."""
    adapted(tmp_path / "one")
    done = on_ranks(2, "tests.e2e.test_tensor_parallel", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in NAMES:
        places = (FOLDER / name, tmp_path / "one" / name, tmp_path / "two" / name)
        before, one, two = (load_file(place / "model.safetensors") for place in places)
        assert before.keys() == one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(
                two[key], one[key], atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )
        applied = open_model(FOLDER / name, adapter=tmp_path / "two" / name / "adapter", dtype="fp32", device="cpu")
        state = applied.network.state_dict()
        for key, tensor in two.items():
            torch.testing.assert_close(
                state[key], tensor, atol=1e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
        changed = {key.rpartition(".")[0].rpartition(".")[2] for key in one if not torch.equal(one[key], before[key])}
        assert len(changed) > 3, name
        alone, together = (json.loads((place / "state.json").read_text())["log_history"] for place in places[1:])
        for figure in ("loss", "grad_norm"):
            found = [entry[figure] for entry in together if figure in entry]
            assert len(found) == 3, name
            assert found == pytest.approx([entry[figure] for entry in alone if figure in entry], rel=2e-4), name


@pytest.mark.parametrize("other", ["trainer.fsdp=full_shard", "trainer.deepspeed={zero_optimization: {stage: 2}}"])
def test_a_model_is_not_cut_in_two_ways(other: str, tmp_path: Path) -> None:
    data = data_of("pangu", "sft", tmp_path)
    done = hanmo("train", "sft", FOLDER / "pangu", data, tmp_path / "run", "--tensor-parallel", "2", other)
    name = other.partition("=")[0]
    assert done.returncode == 2
    assert done.stderr.strip() == f"hanmo: tensor_parallel=2 and {name}: give one of them"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["reward", "dpo", "kto", "grpo", "ppo"])
def test_alignment_is_not_cut(stage: str, tmp_path: Path) -> None:
    data = data_of("pangu", "sft", tmp_path)
    done = hanmo("train", stage, FOLDER / "pangu", data, tmp_path / "run", "tensor_parallel=2")
    assert done.returncode == 2 and "tensor_parallel" in done.stderr and len(done.stderr.strip().splitlines()) == 1


if __name__ == "__main__":
    adapted(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
