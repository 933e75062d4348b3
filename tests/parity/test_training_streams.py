"""Our Trainer on streams against the original's whole fine-tuning run: batches, memory, losses, norms, final weights."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from hanmo.data.rows.dataset import RowDataset
from hanmo.data.rows.documents import StreamRows
from hanmo.training.streams import StreamTrainer
from hanmo.training.trainable import switch_dropout_off
from tests.parity.test_transformer_xl_streams import DOCUMENTS, document
from tests.parity.test_transformer_xl_training import LOSS, RUNS, Trainee, compare_weights, number
from tests.parity.transformer_xl_models import family
from tests.places import load, needs_parity

pytestmark = needs_parity("transformer_xl")


class Memories(TrainerCallback):
    def __init__(self) -> None:
        self.memory: list[int] = []
        self.trainer: StreamTrainer

    def on_step_end(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        self.memory.append(self.trainer._memory[0].shape[1])


def rows(order: list[int], trainee: Trainee) -> StreamRows:
    documents = RowDataset(family(trainee.model.config))
    for place in order:
        documents.append(document(DOCUMENTS[place]))
    return StreamRows(documents, documents.family, trainee.length, seed=None)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_trainer_repeats_the_recorded_run(path: Path, tmp_path: Path) -> None:
    run = load(path)
    trainee = Trainee(run)
    steps, every = len(run["train_steps"]), int(number(run, "eval-interval"))
    group = trainee.optimizer.param_groups[0]
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=trainee.batch,
        per_device_eval_batch_size=trainee.batch,
        max_steps=steps,
        learning_rate=1.0,
        weight_decay=max(entry["weight_decay"] for entry in trainee.optimizer.param_groups),
        adam_beta1=group["betas"][0],
        adam_beta2=group["betas"][1],
        adam_epsilon=group["eps"],
        max_grad_norm=number(run, "clip-grad"),
        eval_strategy="steps",
        eval_steps=every,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
    )
    parts = run["split"]["parts"]
    watch = Memories()
    trainer = StreamTrainer(
        trainee.model,
        args,
        rows(parts[0], trainee),
        rows(parts[1], trainee),
        lambda step, _: trainee.rate(step),
        [watch],
    )
    watch.trainer = trainer
    switch_dropout_off(trainee.model)  # as in the recorded run
    trainer.train()
    ours = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in ours] == pytest.approx([step["loss"] for step in run["train_steps"]], abs=LOSS)
    norms = [step["grad_norm"] for step in run["train_steps"]]
    assert [entry["grad_norm"] for entry in ours] == pytest.approx(norms, rel=1e-4)
    assert watch.memory == [step["mem_len_out"] for step in run["train_steps"]]
    compare_weights(trainee.model, load_file(path.with_suffix(".safetensors")))
