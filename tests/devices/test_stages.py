"""Every stage with every family on a pretended device: nothing mixes devices, and what is learned is what a CPU learns."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from hanmo.training.trainer import RowTrainer
from tests.devices.pretended import pretended, traffic
from tests.devices.stages import PAIRS, STAGES, prepare, run_stage
from tests.unit.tiny import NAMES

# Not AdamW, by which a weight whose gradient is 0 but for rounding (a key's bias) moves as far as any other.
SGD = {"optim": "sgd", "learning_rate": 0.1}
TIMES = {"time", "rollout_share"}
# Further forms of a stage that differ little from family to family: one family each runs with the fast tests.
FAST_FORMS = {
    ("sft, packing", "pangu"),
    ("sft, LoRA", "huggingface"),
    ("sft, streams", "transformer_xl"),
    ("reward, tokenwise", "glm"),
    ("dpo, LoRA", "eva"),
    ("grpo, GSPO", "pangu"),
}


def _cases() -> list[Any]:
    """With the fast tests each stage of each family runs on one of the two devices, by turns; the rest is slow."""
    cases = []
    for stage, family in PAIRS:
        turn = (list(STAGES).index(stage) + NAMES.index(family)) % 2
        for kind in ("cuda", "mps"):
            base = "," not in stage or (stage, family) in FAST_FORMS
            slow = not base or kind != ("cuda", "mps")[turn]
            cases.append(pytest.param(stage, family, kind, marks=[pytest.mark.slow] if slow else []))
    return cases


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of each family's model and data, made when it is first asked for."""

    @functools.cache
    def folder(family: str) -> Path:
        made = tmp_path_factory.mktemp(family)
        prepare(made, family)
        return made

    return folder


def figures(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("runtime", "per_second")
    return [
        {name: value for name, value in entry.items() if name not in TIMES and not any(part in name for part in timed)}
        for entry in entries
    ]


@pytest.mark.parametrize(("stage", "family", "kind"), _cases())
def test_a_stage_on_a_device(stage: str, family: str, kind: str, prepared: Any, tmp_path: Path) -> None:
    expected = figures(run_stage(stage, prepared(family), tmp_path / "cpu", use_cpu=True, **SGD))
    with pretended(kind):
        found = figures(run_stage(stage, prepared(family), tmp_path / kind, bf16=False, **SGD))
    assert sum("loss" in entry for entry in expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    weights, wanted = (load_file(tmp_path / name / "model" / "model.safetensors") for name in (kind, "cpu"))
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("stage", "family"),
    [
        *(("sft", family) for family in NAMES),
        ("dpo", "eva"),
        ("dpo", "glm"),
        ("grpo", "pangu"),
        ("grpo", "huggingface"),
    ],
)
def test_a_gpu_learns_in_bf16_unless_told_otherwise(stage: str, family: str, prepared: Any, tmp_path: Path) -> None:
    expected = figures(run_stage(stage, prepared(family), tmp_path / "cpu", use_cpu=True, bf16=True, **SGD))
    with pretended("cuda"):
        found = figures(run_stage(stage, prepared(family), tmp_path / "cuda", **SGD))
    assert yaml.safe_load((tmp_path / "cuda" / "config.yaml").read_text())["trainer"]["bf16"] is True
    first = next(one for one in found if "loss" in one)
    wanted = next(one for one in expected if "loss" in one)
    assert first["loss"] == pytest.approx(wanted["loss"], rel=0.02, abs=0.02)
    exact = {"dpo": {"chosen_reward": 0, "rejected_reward": 0}, "grpo": {"ratio": 1, "approx_kl": 0, "kl_k1": 0}}
    assert {name: first[name] for name in exact.get(stage, {})} == exact.get(stage, {})


@pytest.mark.parametrize(("stage", "family"), [("sft", "pangu"), ("dpo", "eva"), ("reward", "glm")])
def test_scaling_the_loss_changes_nothing(
    stage: str, family: str, prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With trainer.fp16 the loss is scaled by a power of two; what is computed here in fp32 stays the same bit for bit."""
    scalers = []

    def scaler(*args: Any, **kwargs: Any) -> torch.amp.GradScaler:
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**10))
        return scalers[-1]

    with pretended("cuda"):
        run_stage(stage, prepared(family), tmp_path / "plain", bf16=False, **SGD)
        monkeypatch.setattr("accelerate.accelerator.get_grad_scaler", scaler)
        monkeypatch.setattr(torch.autocast, "__enter__", lambda self: self)
        monkeypatch.setattr(torch.autocast, "__exit__", lambda self, *error: None)
        run_stage(stage, prepared(family), tmp_path / "scaled", fp16=True, **SGD)
    plain, scaled = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "scaled"))
    for name, tensor in plain.items():
        assert torch.equal(scaled[name], tensor), name
    assert len(scalers) == 1 and scalers[0].get_scale() == 2.0**10


@pytest.mark.parametrize(
    ("stage", "family"),
    [*(("sft", family) for family in NAMES), ("reward", "eva"), ("dpo", "glm"), ("kto", "pangu"), ("grpo", "eva"),
     ("grpo, GSPO", "pangu"), ("ppo", "transformer_xl")],
)  # fmt: skip
def test_a_step_of_training_waits_once(stage: str, family: str, prepared: Any, tmp_path: Path) -> None:
    """For the checks of its losses and of its gradients; logging, evaluating and replies wait besides."""
    counted: list[Counter[str]] = []

    class Counting(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            traffic()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            counted.append(traffic())

    plain = RowTrainer.__init__

    def made(trainer: RowTrainer, *args: Any, **kwargs: Any) -> None:
        plain(trainer, *args, **kwargs)
        trainer.add_callback(Counting())

    # It copies a coefficient to the device that C++ names, which for these tensors is the host.
    clipping = patch("torch.nn.utils.clip_grad._clip_grads_with_norm_", lambda *args: None)
    with pretended("cuda"), clipping, patch.object(RowTrainer, "__init__", made):
        run_stage(
            stage,
            prepared(family),
            tmp_path / "run",
            gradient_accumulation_steps=1 if stage.startswith(("grpo", "ppo")) else 2,
            bf16=False,
            **SGD,
        )
    if family == "huggingface":  # transformers looks at its masks in every pass
        assert all(step["waits"] < 20 for step in counted)
    else:
        assert [step["waits"] for step in counted] == [1, 1]
