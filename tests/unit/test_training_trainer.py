"""What RowTrainer adds to transformers' Trainer, each on the smallest network."""

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from hanmo.data.rows.dataset import EpochSampler, RowDataset
from hanmo.errors import CheckpointError, DivergedError
from hanmo.rows import collate
from hanmo.training.callbacks import MetricsFile, StopOnSignal, read_metrics
from hanmo.training.divergence import STEPS
from hanmo.training.schedules import factor
from hanmo.training.trainer import DRAFTS, RowTrainer
from tests import processes
from tests.toy import ToyModel, toy_model, toy_rows


def trainer(folder: Path, model: ToyModel, count: int = 24, **settings: Any) -> RowTrainer:
    extra = {name: settings.pop(name) for name in ("factor", "callbacks") if name in settings}
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.05,
        "weight_decay": 0.1,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "logging_nan_inf_filter": False,
        "use_cpu": True,
    }
    args = TrainingArguments(str(folder), **{**defaults, **settings})
    return RowTrainer(model, args, toy_rows(count), toy_rows(10, seed=9), **extra)


def weights(model: ToyModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    results = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        model = toy_model()
        run = trainer(
            tmp_path, model, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            optim="sgd", learning_rate=0.5,
        )  # fmt: skip
        run.train()
        results.append((weights(model), [e["loss"] for e in run.state.log_history if "loss" in e]))
    assert differences(results[0][0], weights(toy_model())) > 0.1  # it has learned
    for state, losses in results[1:]:
        assert differences(results[0][0], state) < 1e-6
        assert losses == pytest.approx(results[0][1], rel=1e-5)


def test_an_epochs_order_knows_nothing_of_lengths_unless_it_groups_them(tmp_path: Path) -> None:
    def order(rows: RowDataset, **settings: Any) -> list[int]:
        run = trainer(tmp_path, toy_model(), **settings)
        return list(run._get_train_sampler(rows))

    some, others = toy_rows(24), toy_rows(24, seed=5)
    assert some.lengths != others.lengths
    assert order(some) == order(others) and sorted(order(some)) == list(range(24))
    grouped = {"train_sampling_strategy": "group_by_length"}
    assert order(some, **grouped) != order(others, **grouped)


def test_the_loss_is_the_mean_of_the_means_of_samples(tmp_path: Path) -> None:
    model, rows = toy_model(), toy_rows(4)
    by_hand = []
    for _, row in map(rows.__getitem__, range(4)):
        logits = model(**{k: v[None] for k, v in row.inputs.items()}).logits[0]
        by_hand.append(torch.nn.functional.cross_entropy(logits, row.labels, ignore_index=-100))
    run = trainer(tmp_path, model, count=4, max_steps=1, learning_rate=0.0)
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 4, 10])
def test_the_evaluation_loss_does_not_depend_on_the_batch(tmp_path: Path, batch: int) -> None:
    model, rows = toy_model(), toy_rows(10, seed=9)
    whole = collate([rows[place][1] for place in range(10)], {})
    whole["weights"] *= torch.arange(1, 11)[:, None]  # uneven weights: a mean of batch means would differ
    run = trainer(tmp_path, model, per_device_eval_batch_size=batch)
    original = run.data_collator
    run.data_collator = lambda items: (
        (b := original(items))
        | {  # type: ignore[assignment]
            "weights": b["weights"] * (b["row_ids"] + 1)[:, None]
        }
    )
    with torch.no_grad():
        expected = model.eval()(**whole).loss.item()
    assert run.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_decay_spares_norms_and_biases(tmp_path: Path) -> None:
    model = toy_model()
    decayed = trainer(tmp_path, model).get_decay_parameter_names(model)
    assert sorted(decayed) == ["embed.weight", "layers.0.weight", "layers.1.weight", "lm_head.weight"]


def test_our_schedule_is_followed(tmp_path: Path) -> None:
    seen = []

    def noam(step: int, steps: int) -> float:
        seen.append(steps)
        return factor("noam", step, 2, steps)

    run = trainer(tmp_path, toy_model(), factor=noam)
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.05 * factor("noam", step, 2, 12) for step in range(12)])
    assert set(seen) == {12}


class Stop(TrainerCallback):
    """Breaks off after a step, as a kill does, or sends a signal."""

    def __init__(self, step: int, number: int | None = None):
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            if self.number is None:
                raise RuntimeError("killed")
            os.kill(os.getpid(), self.number)


SAVING = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 2}


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
@pytest.mark.parametrize("step", [1, 3, 6, 7, 9])  # an epoch has 6 steps; checkpoints stand at even ones
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, step: int, sampling: str) -> None:
    settings = {**SAVING, "train_sampling_strategy": sampling}
    model = toy_model(dropout=0.3)
    whole = trainer(tmp_path / "whole", model, **settings)
    whole.train()

    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path / "cut", toy_model(dropout=0.3), callbacks=[Stop(step)], **settings).train()
    torch.manual_seed(12345)  # the generators of the new process stand elsewhere
    again = toy_model(dropout=0.3, seed=3)
    resumed = trainer(tmp_path / "cut", again, **settings)
    if step > 2:
        resumed.train(resume_from_checkpoint=True)
        assert differences(weights(model), weights(again)) == 0.0
        ours = {e["step"]: e["loss"] for e in resumed.state.log_history if "loss" in e}
        assert ours == {e["step"]: e["loss"] for e in whole.state.log_history if "loss" in e}
    else:
        with pytest.raises(ValueError, match="No valid checkpoint"):
            resumed.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("steps", [10, 12])  # within an epoch, and at the end of one
def test_a_run_killed_after_its_last_checkpoint_has_nothing_left_to_do(tmp_path: Path, steps: int) -> None:
    model, again = toy_model(), toy_model(seed=3)
    trainer(tmp_path, model, max_steps=steps, **SAVING).train()
    resumed = trainer(tmp_path, again, max_steps=steps, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == steps
    assert differences(weights(model), weights(again)) == 0.0


@pytest.fixture
def default_signals() -> Iterator[None]:
    """As in a terminal, also where the suite was started with signals ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_signals")
def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path: Path) -> None:
    """As in the background of a script; SIGTERM still stops the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopOnSignal()
    run = trainer(tmp_path, toy_model(), callbacks=[Stop(3, signal.SIGINT), Stop(5, signal.SIGTERM), stop], **SAVING)
    run.train()
    assert stop.signal == signal.SIGTERM and run.state.global_step == 5
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path: Path, number: int) -> None:
    model = toy_model(dropout=0.3)
    trainer(tmp_path / "whole", model, **SAVING).train()

    before = signal.getsignal(number)
    stop = StopOnSignal()
    cut = trainer(tmp_path / "cut", toy_model(dropout=0.3), callbacks=[Stop(5, number), stop], **SAVING)
    cut.train()
    assert stop.signal == number
    assert signal.getsignal(number) == before
    assert cut.state.global_step == 5
    again = toy_model(dropout=0.3, seed=3)
    trainer(tmp_path / "cut", again, **SAVING).train(resume_from_checkpoint=True)
    assert differences(weights(model), weights(again)) == 0.0


def test_a_signal_in_an_epoch_does_not_evaluate_it(tmp_path: Path) -> None:
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    run = trainer(tmp_path, toy_model(), callbacks=[Stop(5, signal.SIGTERM), StopOnSignal()], **settings)
    run.train()
    assert not [entry for entry in run.state.log_history if "eval_loss" in entry]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    model.lm_head.weight.fill_(float("nan"))

    run = trainer(tmp_path, toy_model(), callbacks=[Poison()], **SAVING)
    with pytest.raises(DivergedError) as error:
        run.train()
    message = str(error.value)
    assert message.startswith("step 5: the loss is nan")
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-4'}" in message
    assert message.count("toy.txt:") == 4


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    model = toy_model()
    model.embed.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(model)
    with pytest.raises(
        DivergedError, match=r"step 1: the gradient's norm is (nan|inf); there is no checkpoint yet"
    ) as e:
        trainer(tmp_path, model, gradient_accumulation_steps=2).train()
    assert str(e.value).count("toy.txt:") == 8  # both batches of the step
    assert differences(before, weights(model)) == 0.0


def test_an_exploding_loss_stops_the_run(tmp_path: Path) -> None:
    """Finite throughout; the checkpoint named is the last one from before, though there are later ones."""
    rates = {"learning_rate": 1.0, "factor": lambda step, _: 0.01 if step < 30 else 100.0}
    settings = {**SAVING, "save_steps": 5, "eval_steps": 5, "save_total_limit": None, "max_steps": 90, "optim": "sgd"}
    run = trainer(tmp_path, toy_model(), gradient_accumulation_steps=2, weight_decay=0.0, **rates, **settings)
    with pytest.raises(DivergedError) as error:
        run.train()
    message, losses = str(error.value), [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    step = run.state.global_step + 1
    assert all(loss < 1e9 for loss in losses) and step < 60
    began = step + 1 - STEPS
    assert began > 30 and (tmp_path / f"checkpoint-{step // 5 * 5 - 5}").is_dir()
    limit = 2 * min(max(losses[place : place + STEPS]) for place in range(began - STEPS))
    assert message.startswith(f"step {step}: the loss has exploded: above {limit:.3g} since step {began}, ")
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-30'}; try a smaller learning rate" in message
    assert f"records of step {began}: toy.txt:" in message
    epoch, first = divmod(8 * (began - 1), 24)  # 8 rows a step, 24 an epoch
    sampler = EpochSampler(toy_rows(24).lengths, run.args.seed)
    sampler.set_epoch(epoch)
    fed = [toy_rows(24).where(place) for place in list(sampler)[first : first + 8]]
    assert sorted(message.partition(f"records of step {began}: ")[2].split(", ")) == sorted(fed)
    for step in range(5, 31, 5):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    assert "the checkpoints are of later steps" in run._diverged("")


def test_the_same_run_at_its_own_rate_does_not_stop(tmp_path: Path) -> None:
    trainer(tmp_path, toy_model(), learning_rate=0.01, max_steps=90, optim="sgd").train()


IN_TWO_PROCESSES = """
import sys
from collections.abc import Iterator
from pathlib import Path
from hanmo.errors import DivergedError
from tests.toy import toy_model
from tests.unit.test_training_trainer import trainer

run = trainer(Path(sys.argv[1]), toy_model(), per_device_train_batch_size=2, learning_rate=100.0,
              optim="sgd", lr_scheduler_type="constant", max_steps=90, eval_strategy="no")
try:
    run.train()
except DivergedError as error:
    Path(sys.argv[1] + f".{run.args.process_index}").write_text(str(error))
"""


def test_processes_stop_together_and_name_all_their_records(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(IN_TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = processes.run([*command, str(tmp_path / "run")], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"run.{rank}").read_text() for rank in range(2))
    assert first == second and "the loss has exploded" in first
    assert first.count("toy.txt:") == 4


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path: Path) -> None:
    model = toy_model()
    run = trainer(tmp_path, model, learning_rate=0.3, num_train_epochs=4, load_best_model_at_end=True, **SAVING)
    run.train()
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = min(losses, key=lambda step: losses[step])
    assert best < run.state.global_step, "the case must be one where the last checkpoint is not the best"
    assert run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    names = {path.name for path in tmp_path.iterdir()} - {DRAFTS}
    assert names == {f"checkpoint-{best}", f"checkpoint-{run.state.global_step}"}


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = torch.save

    def full(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"checkpoint-4: cannot be saved .*No space.*checkpoint-2, is untouched"):
        trainer(tmp_path, toy_model(), **SAVING).train()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    whole, resumed = toy_model(), toy_model()
    trainer(tmp_path / "whole", whole, **SAVING).train()
    trainer(tmp_path, resumed, **SAVING).train(resume_from_checkpoint=True)
    assert differences(weights(whole), weights(resumed)) == 0.0


def test_what_a_kill_left_half_saved_is_not_resumed(tmp_path: Path) -> None:
    trainer(tmp_path, toy_model(), max_steps=2, **SAVING).train()
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / DRAFTS / "checkpoint-4")
    (tmp_path / DRAFTS / "checkpoint-4" / "optimizer.pt").unlink()
    run = trainer(tmp_path, toy_model(), **SAVING)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 12
    assert not list((tmp_path / DRAFTS).glob("*"))


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import torch
from tests.toy import toy_model
from tests.unit.test_training_trainer import SAVING, trainer

saved = torch.save
def half(value, file, *args, **kwargs):
    saved(value, file, *args, **kwargs)
    if sys.argv[2] in str(file) and "checkpoint-4" in str(file):
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
trainer(Path(sys.argv[1]), toy_model(dropout=0.3), **SAVING).train()
"""


@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth"])
def test_a_run_killed_while_it_saves_resumes_to_the_same_weights(tmp_path: Path, file: str) -> None:
    """kill -9 in the middle of a file of the second checkpoint: the first one is whole and is gone on from."""
    program = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path / "cut"), file]
    killed = processes.run(program)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "cut" / DRAFTS / "checkpoint-4" / file).exists()
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-2"]
    whole, resumed = toy_model(dropout=0.3), toy_model(dropout=0.3, seed=3)
    trainer(tmp_path / "whole", whole, **SAVING).train()
    torch.manual_seed(99)
    trainer(tmp_path / "cut", resumed, **SAVING).train(resume_from_checkpoint=True)
    assert differences(weights(whole), weights(resumed)) == 0.0


def test_metrics_continue_where_the_checkpoint_stood(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, toy_model(), callbacks=[MetricsFile(file), Stop(5)], **SAVING).train()
    assert [e["step"] for e in read_metrics(file) if "loss" in e] == [1, 2, 3, 4]
    with file.open("a") as cut_off:
        cut_off.write('{"step": 5, "lo')
    trainer(tmp_path, toy_model(), callbacks=[MetricsFile(file)], **SAVING).train(resume_from_checkpoint=True)
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [e["step"] for e in entries if "loss" in e] == list(range(1, 13))
    assert [e["step"] for e in entries if "eval_loss" in e] == [2, 4, 6, 8, 10, 12]
