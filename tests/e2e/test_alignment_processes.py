"""``hanmo train reward|dpo|kto|grpo|ppo --nproc 2`` learns what one process learns."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from hanmo.checkpoints import open_model, save_model
from hanmo.training.callbacks import read_metrics
from tests import processes
from tests.unit.alignment_cases import QUESTIONS, REWARD
from tests.unit.tiny import tiny

ROOT = Path(__file__).resolve().parents[2]
# One optimizer step a round: the processes share out the replies of a round, and with them which share a step.
POLICY = [f"rewards=[{REWARD}]", "rounds=3", "samples=8", "epochs=1", "generation.max_new_tokens=6"]
STEPS = ["trainer.max_steps=4"]
OWN = {
    **dict.fromkeys(("reward", "dpo", "kto"), STEPS),
    "grpo": [*POLICY, "group=4"],
    "grpo, drawn again": [
        *POLICY,
        "group=2",
        "resample=2",
        "ratio=reply",
        "loss=reply",
        "beta=0",
        "mask_truncated=true",
    ],
    "ppo": POLICY,
}
# Means over the processes, not over all replies, and times; all other figures are those of one process.
OWN_FIGURES = {"explained_variance", "value", "rollout_share", "epoch", "seconds"}
BESIDE = ("runtime", "per_second", "accuracy")  # of the accuracy see the test


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout, which draws in every process by itself, and data of four and of three pairs."""
    place = tmp_path_factory.mktemp("alignment")
    opened = tiny("pangu", place / "vocabulary")
    for key in list(opened.network.config.to_dict()):
        if key.endswith("pdrop"):
            setattr(opened.network.config, key, 0.0)
    save_model(opened, place / "model")
    pairs = [{"prompt": text, "chosen": "好" + text[:n], "rejected": "不" + text} for n, text in enumerate(QUESTIONS)]
    for name, lines in (("train", pairs * 2), ("valid", pairs[:3])):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return place


def batch(stage: str) -> int:
    return 4 if OWN[stage] is STEPS else 8


def run(stage: str, count: int, place: Path, out: Path) -> list[dict[str, Any]]:
    settings = [
        "limit=48", *OWN[stage], "trainer.use_cpu=true", "trainer.logging_steps=1", "trainer.learning_rate=0.003",
        f"trainer.per_device_train_batch_size={batch(stage) // count}", f"trainer.per_device_eval_batch_size={batch(stage) // count}",
        "trainer.adam_epsilon=1e-4",
    ]  # fmt: skip
    if OWN[stage] is STEPS:
        settings += [f"valid={place / 'valid.jsonl'}", "trainer.eval_strategy=steps", "trainer.eval_steps=2"]
    command = [
        "train",
        stage.partition(",")[0],
        str(place / "model"),
        str(place / "train.jsonl"),
        str(out),
        "--preset",
        "none",
    ]
    processes.run(
        [sys.executable, "-m", "hanmo", *command, *settings, "--nproc", str(count)], check=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return read_metrics(out / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("stage", OWN)
def test_two_processes_learn_what_one_learns(stage: str, place: Path, tmp_path: Path) -> None:
    one, two = (run(stage, count, place, tmp_path / str(count)) for count in (1, 2))
    assert len(one) == len(two) and one
    for alone, together in zip(one, two, strict=True):
        assert alone.keys() == together.keys()
        for name in alone.keys() - OWN_FIGURES:
            if name.endswith(BESIDE) and (not name.endswith("accuracy") or alone["step"] <= 1):
                continue  # before the first step both answers of a pair are alike: rounding decides
            assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), (name, alone["step"])
    ends = [open_model(tmp_path / count / "model", dtype="fp32", device="cpu").network.state_dict() for count in "12"]
    for name, tensor in ends[0].items():
        assert float((tensor - ends[1][name]).abs().max()) < 1e-4, name
