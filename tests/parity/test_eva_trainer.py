"""Our Trainer, given the recorded records and settings, against the original's first optimizer steps."""

from pathlib import Path

import pytest
from transformers import TrainingArguments

from hanmo.data.rows.dataset import make_rows
from hanmo.records import Rejects, iter_records
from hanmo.training.trainer import RowTrainer
from tests.parity.eva_models import EVA, opened
from tests.places import load, needs_parity

pytestmark = needs_parity("eva")
STEPS = load(EVA / "train_steps.json", {})
FORWARD = load(EVA / "forward.json", {})


@pytest.mark.parametrize("batch, accumulation", [(None, 1), (1, None)])
def test_first_steps(tmp_path: Path, batch: int | None, accumulation: int | None) -> None:
    padded = FORWARD[STEPS["model"]]["padded"]
    records = list(iter_records(EVA / "data" / "dialogues.txt"))
    model = opened(STEPS["model"], None)
    lengths = (padded["dataset"]["enc_len"], padded["dataset"]["dec_len"])
    dropped = Rejects()
    rows = make_rows([records[sample] for sample in padded["samples"]], model.family, *lengths, dropped)
    assert not dropped
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=batch or len(rows),
        gradient_accumulation_steps=accumulation or len(rows),
        max_steps=len(STEPS["losses"]),
        learning_rate=STEPS["lr"],
        lr_scheduler_type="constant",
        weight_decay=STEPS["weight_decay"],
        adam_beta1=STEPS["betas"][0],
        adam_beta2=STEPS["betas"][1],
        adam_epsilon=STEPS["eps"],
        max_grad_norm=STEPS["clip_grad"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
    )
    trainer = RowTrainer(model.network, args, rows)
    decayed = trainer.get_decay_parameter_names(model.network)
    assert len(decayed) == len(set(decayed))
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in steps] == pytest.approx(STEPS["losses"], rel=1e-4)
    assert [entry["grad_norm"] for entry in steps] == pytest.approx(STEPS["total_grad_norm_before_clip"], rel=1e-3)


def test_weight_decay_groups(tmp_path: Path) -> None:
    from tests.parity.eva_original import entries

    network = opened(STEPS["model"], None).network
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    decayed = set(RowTrainer(network, args).get_decay_parameter_names(network))
    ours = {entry.theirs: entry.ours for entry in entries(network.config, "megatron")}
    assert decayed == {name for theirs in STEPS["decayed_params"] for name in ours[theirs]}
