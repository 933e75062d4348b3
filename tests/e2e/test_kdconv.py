"""Real dialogues: a small EVA fine-tuned on the whole of KdConv by the commands, measured on test data before and after."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hanmo import families
from hanmo.checkpoints import save_model
from hanmo.data.prepare import vocabulary
from hanmo.demo.model import start_aligned
from hanmo.families.base import OpenedModel
from hanmo.records import iter_records
from tests import processes
from tests.places import DATA, needs_data

pytestmark = [needs_data, pytest.mark.slow]

FOLDER = DATA / "kdconv" / "eva_format"
TRAINER = {
    "max_steps": 600,
    "per_device_train_batch_size": 32,
    "learning_rate": 0.002,
    "warmup_steps": 100,
    "lr_scheduler_type": "linear",
    "eval_steps": 300,
    "save_steps": 300,
    "logging_steps": 25,
    "seed": 0,
    "use_cpu": True,
}
COLUMNS = ("loss", "bleu-4", "dist-4", "f1")  # of the published table


def fresh(folder: Path) -> Path:
    """A small EVA with random weights whose words are those of KdConv's training file."""
    import torch

    family: Any = families.load("eva")
    texts = [turn for dialogue in iter_records(FOLDER / "train.txt.gz") for turn in dialogue.turns]  # type: ignore[union-attr]
    folder.mkdir()
    tokens = vocabulary.build(texts, words=3000, min_count=20)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    tokenizer = family.tokenizer_class(vocab_file=str(folder / "vocab.txt"))
    config = family.config_class(
        vocab_size=len(tokens), d_model=128, d_ff=256, d_kv=32, num_heads=4, num_layers=2, initializer_range=0.05
    )
    torch.manual_seed(0)
    network = family.network_class(config)
    start_aligned(network)
    save_model(OpenedModel(network.eval(), family(config, tokenizer), "fresh"), folder / "model")
    return folder / "model"


def hanmo(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "hanmo", *map(str, arguments), "--json"]
    run = processes.run(command)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_loss_bleu_and_f1_move_the_right_way(tmp_path: Path) -> None:
    model = fresh(tmp_path / "fresh")
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "valid", "test"):
        (data / f"{split}.txt.gz").symlink_to(FOLDER / f"{split}.txt.gz")
    evaluate = (
        "--first",
        1500,
        "--batch-size",
        64,
        "--limit",
        128,
        "--response-limit",
        64,
        "max_new_tokens=32",
    )
    evaluate = (*evaluate, "num_beams=1", "do_sample=false")
    before = hanmo("eval", "dialogue", model, data / "test.txt.gz", *evaluate)
    run = tmp_path / "run"
    settings = [f"trainer.{name}={value}" for name, value in TRAINER.items()]
    hanmo("train", "sft", model, data, run, "--preset", "none", "limit=128", "response_limit=64", *settings)
    after = hanmo("eval", "dialogue", run / "model", data / "test.txt.gz", *evaluate)
    for reading in ("published", "corrected"):
        was, now = before[reading], after[reading]
        print(f"\nKdConv, {reading} | " + " | ".join(COLUMNS))
        for name, figures in (("before", was), ("after", now)):
            print(f"{name} | " + " | ".join(f"{figures[column]:.2f}" for column in COLUMNS))
        assert now["loss"] < was["loss"] - 2
        assert now["bleu-4"] > was["bleu-4"] + 0.5
        assert now["f1"] > was["f1"] + 8
