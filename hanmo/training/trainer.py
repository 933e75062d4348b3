"""The Trainer of all stages: transformers' Trainer for batches of rows.

The loss of an optimizer step is divided by the weights of the whole step; the evaluation loss does not depend on the
batch size; weights decay as published; the order of the data depends on seed and epoch alone, so that a killed run
resumes to the same weights; checkpoints appear whole or not at all; a loss that diverges stops the run.
"""

import shutil
from collections import deque
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from hanmo.checkpoints.open import quiet
from hanmo.data.rows.dataset import DUMMY_ROW, ROW_IDS, Collator, EpochSampler, Rows
from hanmo.data.rows.mixture import mixture_of
from hanmo.errors import CheckpointError, DivergedError, quoted
from hanmo.files import system_errors
from hanmo.nn.shapes import is_shaped
from hanmo.training.divergence import STEPS, LossWatch
from hanmo.training.restoring import check_state, restoring
from hanmo.training.schedules import RateFactor
from hanmo.training.sharded import ShardedTrainer
from hanmo.training.trainable import compile_layers

DRAFTS = ".saving"  # the folder of a checkpoint that is being written


class RowTrainer(ShardedTrainer):
    """Trains a network that returns ``RowOutput`` on ``Rows``; without a ``factor``, args.lr_scheduler_type applies."""

    collator: type[Any] = Collator
    _other_figures: dict[str, float] = {}  # logged besides those of batches

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train: Rows | None = None,
        valid: Rows | None = None,
        factor: RateFactor | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        assert args.output_dir is not None
        self.folder = Path(args.output_dir)
        self._drafts = self.folder / DRAFTS
        if args.torch_compile:  # accelerate would compile the head too
            compile_layers(model, args.torch_compile_backend or "inductor", args.torch_compile_mode)
            args.torch_compile = False
        padding = next((rows.family.padding for rows in (train, valid) if rows is not None), {})
        super().__init__(model, args, self.collator(padding), train, valid, callbacks=callbacks)
        self.remove_callback(PrinterCallback)  # standard output is for results, and progress has its own callback
        self.remove_callback(ProgressCallback)
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs mean several processes, never DataParallel
        self._factor = factor
        self._fed: deque[list[Tensor]] = deque(maxlen=STEPS)  # places of the rows of the last optimizer steps
        self._losses: list[Tensor] = []  # of the batches of the optimizer step so far, in this process
        self._loss_watch = LossWatch()
        self._evaluated: list[Tensor] = []
        self._figures: list[dict[str, Tensor]] = []
        self._saving = False
        shutil.rmtree(self._drafts, ignore_errors=True)  # of a run that was killed while saving

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed from the last checkpoint of a finished run
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; CheckpointError if a state file of the checkpoint (True: the last one) is damaged or needs code."""
        checkpoint = get_last_checkpoint(str(self.folder)) if resume_from_checkpoint is True else resume_from_checkpoint
        if checkpoint:
            check_state(Path(checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @property
    def _replicas(self) -> int:
        """Processes with batches of their own: not those that share a model cut by tensor parallelism."""
        return self.args.world_size // self.get_tp_size()

    def add_figures(self, count: Tensor, **figures: Tensor) -> None:
        """Take the figures of a batch, to be logged with the next loss: their sums divided by those of ``count``."""
        self._figures.append({"count": count, **{name: x.detach() for name, x in figures.items()}})

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._figures:
            own = {name: sum(float(one[name].sum()) for one in self._figures) for name in self._figures[0]}
            every = self._gathered([own])
            sums = {name: sum(one[name] for one in every) for name in own}
            logs |= self.mean_figures(sums) | self._other_figures
            self._figures = []
        super().log(logs, *args, **kwargs)

    def mean_figures(self, sums: dict[str, float]) -> dict[str, float]:
        """The figures to log, from the sums of those since the last ones."""
        return {name: sums[name] / sums["count"] for name in sums if name != "count"}

    def _gathered(self, items: list[Any]) -> list[Any]:
        """The items of all processes with batches of their own; every process calls it."""
        return gather_object(items) if self._replicas > 1 else items

    @property
    def kept_step(self) -> int:
        """The step of the final weights: the last one, or that of the best checkpoint if it was loaded at the end."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return int(best.rpartition("-")[2]) if best else self.state.global_step

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not is_shaped(model):  # shapes are where they are to be
            super()._move_model_to_device(model, device)

    # The order of the data

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args, rows = self.args, train_dataset or self.train_dataset
        assert isinstance(rows, Rows)
        grouped = args.train_sampling_strategy == "group_by_length"
        group = args.train_batch_size * args.gradient_accumulation_steps * self._replicas if grouped else 1
        # Processes take turns; accelerate would repeat rows to fill the last batches.
        multiple = args.train_batch_size * self._replicas if self._replicas > 1 else 1
        seed = args.seed if args.data_seed is None else args.data_seed
        return EpochSampler(rows.lengths, seed, group, multiple, rows.drawn, mixture_of(rows))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Order by length, to reduce padding; the evaluation loss does not depend on the order."""
        lengths = eval_dataset.lengths
        return sorted(range(len(lengths)), key=lengths.__getitem__)

    # The loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """The weights of an optimizer step over all its batches and processes."""
        if not batch_samples:
            return None
        total = torch.as_tensor(sum(self.weights_of(batch).sum() for batch in batch_samples)).to(device)
        return self.accelerator.gather(total).sum() if self._replicas > 1 else total

    def weights_of(self, batch: dict[str, Any]) -> Tensor:
        """The weight of each example of a batch."""
        return batch["weights"]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        places = inputs.pop(ROW_IDS, None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if places is not None:
            if not self._losses:
                self._fed.append([])
            self._fed[-1].append(places)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of a step's gradients, after checks of it and of the step's losses in one wait for the device."""
        norm = super()._get_grad_norm(model, grad_norm)
        own, self._losses = torch.stack(self._losses), []
        mean = self.accelerator.reduce(own.sum(), "mean")
        plain = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
        *losses, loss, size = torch.cat([own, torch.stack([mean, plain.to(mean)])]).tolist()
        if self._fed and isfinite(loss):  # the loss of a policy is measured against its own replies, and may grow
            self._check_divergence(loss)
        infinite = not isfinite(size) and self.accelerator.scaler is None  # with fp16 the scaler skips such a step
        if infinite or not isfinite(loss):
            fed = [places.tolist() for places in self._fed[-1]] if self._fed else []
            bad = [places for places, one in zip(fed, losses, strict=False) if not isfinite(one)]
            what = f"the gradient's norm is {size}" if isfinite(loss) else f"the loss is {loss}"
            raise DivergedError(self._diverged(what, self._gathered(fed if isfinite(loss) else bad)))
        return norm

    def _check_divergence(self, loss: float) -> None:
        """Check the loss of a step, over all its batches and processes."""
        watch = self._loss_watch
        if watch.diverged(self.state.global_step + 1, loss):
            what = f"the loss has exploded: above {watch.limit:.3g} since step {watch.began}, {loss:.4g} now"
            what += f", where it had stayed below {watch.ceiling:.3g}"
            fed = self._gathered([places.tolist() for places in self._fed[0]])
            raise DivergedError(self._diverged(what, fed, f"step {watch.began}"))

    def _diverged(self, what: str, fed: Iterable[list[int]] = (), of: str = "the batch") -> str:
        """The message that ends a run; ``fed`` are the places of the rows ``of`` something."""
        names = [path.name.removeprefix("checkpoint-") for path in self.folder.glob("checkpoint-*")]
        saved = sorted(int(name) for name in names if name.isdecimal())
        began = self._loss_watch.began  # the update before it caused the first loss that was too high
        good = [step for step in saved if began is None or step < began - 1]
        if good:
            where = f"the last good checkpoint is {self.folder / f'checkpoint-{good[-1]}'}"
        elif saved:
            where = "the checkpoints are of later steps (trainer.save_total_limit keeps more)"
        else:
            where = "there is no checkpoint yet"
        message = f"step {self.state.global_step + 1}: {what}; {where}; "
        message += "try a smaller learning rate, a longer warm-up or trainer.max_grad_norm"
        if self.args.fp16:
            message += "; fp16 ends at 65,504, so try trainer.bf16=true instead of trainer.fp16 too"
        if places := [place for batch in fed for place in batch if place != DUMMY_ROW]:
            assert isinstance(self.train_dataset, Rows)
            message += f"; records of {of}: {', '.join(map(self.train_dataset.where, places))}"
        return message

    def output_as_trained(self, network: Any, **inputs: Any) -> Any:
        """What a network computes in a training step, bit for bit. No backward pass can follow.

        Without gradients torch may take other kernels, as it does for EVA's attention; and only a network that the Trainer
        has wrapped computes in its precision by itself.
        """
        training = network.training
        network.train()
        try:
            keeping_nothing = saved_tensors_hooks(lambda kept: None, lambda kept: kept)  # no backward pass follows
            with torch.enable_grad(), keeping_nothing, self.accelerator.autocast():
                return network(**inputs)
        finally:
            network.train(training)

    def kept_bytes(self) -> dict[str, int]:
        """What a run keeps in memory besides weights, gradients and the optimizer's state, by name."""
        return {}

    def measured_batch(self) -> dict[str, Any]:
        """The largest batch, for measuring a step."""
        rows: Any = self.train_dataset
        places = sorted(range(len(rows)), key=rows.lengths.__getitem__)[-self.args.per_device_train_batch_size :]
        batch = self.data_collator([rows[place] for place in places])
        return {name: value for name, value in batch.items() if name != ROW_IDS}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counting would visit all parameters in every step

    # Evaluation

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of one batch; keeps the figures of every example for the whole."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, figures = self.evaluated_batch(model, self._prepare_inputs(inputs))
        if self._replicas > 1:  # leaves out the repeated examples that filled up the last batch of other processes
            figures = self.accelerator.gather_for_metrics(figures)
        self._evaluated.append(figures.cpu().double())  # some devices have no float64
        return loss, None, None

    def evaluated_batch(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and (B, 2) the weighted negative log-likelihood and the weight of each row."""
        inputs = {name: value for name, value in batch.items() if name != ROW_IDS}
        output = self._evaluated_output(model, inputs)
        return output.loss, torch.stack([-(inputs["weights"] * output.logprob).sum(1), inputs["weights"].sum(1)], dim=1)

    def _evaluated_output(self, model: nn.Module, inputs: dict[str, Tensor]) -> Any:
        return model(**inputs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluated = []
        output = super().evaluation_loop(*args, **kwargs)
        assert output.metrics is not None
        figures, prefix = self.evaluation_figures(torch.cat(self._evaluated)), kwargs.get("metric_key_prefix", "eval")
        output.metrics.update({f"{prefix}_{name}": value for name, value in figures.items()})
        return output

    def evaluation_figures(self, table: Tensor) -> dict[str, float]:
        """The figures of an evaluation from those of ``evaluated_batch``, over all examples."""
        nll, weight = table.sum(0).tolist()
        return {"loss": nll / weight}

    # The optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in the originals: everything decays except norms and biases; bias tables and embeddings do decay."""
        return [
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            if "norm" not in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)
            if name != "bias"
        ]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self._factor is not None and self.lr_scheduler is None:
            factor, optimizer = self._factor, optimizer or self.optimizer
            assert optimizer is not None
            self.lr_scheduler = LambdaLR(optimizer, lambda step: factor(step, num_training_steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # Checkpoints

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with restoring(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring(checkpoint or ""):
            super()._load_rng_state(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As transformers, but a tied output head is not missing: it is stored once, under the embedding's name."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._drafts if self._saving else self.folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside the others and rename it when it is complete; then remove surplus ones."""
        name = f"checkpoint-{self.state.global_step}"
        final, draft = self.folder / name, self._drafts / name
        self._saving = True
        try:
            with quiet(), system_errors():
                super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(self._drafts, ignore_errors=True)
            last = get_last_checkpoint(str(self.folder))
            kept = f"the last checkpoint, {last}, is untouched" if last else "there is no earlier one"
            raise CheckpointError(f"{final}: cannot be saved ({quoted(error)}); {kept}") from error
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(draft):
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self.state.save_to_json(str(draft / "trainer_state.json"))
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
            rotate_checkpoints(
                str(self.folder), self.args.save_total_limit, best_model_checkpoint=self.state.best_model_checkpoint
            )
        self.accelerator.wait_for_everyone()
