"""Shared by the stages that compare a policy with the model it started from: the reference's log-probabilities."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.data.rows.dataset import DUMMY_ROW, ROW_IDS
from hanmo.nn.row_model import evaluating
from hanmo.rows import chunked
from hanmo.training.trainable import switch_dropout_off
from hanmo.training.trainer import RowTrainer


class ReferenceTrainer(RowTrainer):
    """Gives every batch the reference's log-probabilities, computed once before training, under ``references`` (B, 2).

    Dropout is off, so that policy and reference differ only by training.
    """

    compares = True  # False: a loss without a reference, in whose place are zeros

    def __init__(self, model: nn.Module, *args: Any):
        switch_dropout_off(model)
        super().__init__(model, *args)
        self._references: list[Tensor] = []  # of training and validation

    @abstractmethod
    def compared_logprobs(self, forward: Callable[..., Any], batch: dict[str, Any]) -> Tensor:
        """The two log-probabilities of each example of a batch by ``forward``, (B, 2)."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the reference is the model before training."""
        network: Any = self.model
        home = network.device
        network.to(self.args.device)  # a run that cuts its weights leaves them on the CPU until then
        self._references = [self._reference_logprobs(network, self.train_dataset, learned=True)]
        if self.eval_dataset is not None:
            self._references.append(self._reference_logprobs(network, self.eval_dataset, learned=False))
        network.to(home)
        return super().train(*args, **kwargs)

    @torch.no_grad()
    def _reference_logprobs(self, network: Any, data: Any, learned: bool) -> Tensor:
        """(examples, 2) fp32, on the device of the training: every process computes its share of them.

        They are computed as in the first epoch, or as in an evaluation, in the same batches: before the first update the
        policy's log-probabilities are equal, bit for bit.
        """
        if not self.compares:
            return torch.zeros(len(data), 2, device=self.args.device)
        args, world = self.args, self._replicas
        size = args.per_device_train_batch_size if learned else args.per_device_eval_batch_size
        order = list(self._get_train_sampler(data) if learned else self._get_eval_sampler(data))
        left_out = sorted(set(range(len(data))) - set(order), key=data.lengths.__getitem__)
        rank = args.process_index if world > 1 else 0  # ranks that share a split model all need every example
        found = torch.full((len(data), 2), float("-inf"))
        for places in [*chunked(order, size)[rank::world], *chunked(left_out, size)[rank::world]]:
            batch = self._prepare_inputs(self.data_collator([data[place] for place in places]))
            if learned:
                compared_B2 = self.compared_logprobs(partial(self.output_as_trained, network), batch)
            else:
                with evaluating(network), self.accelerator.autocast():
                    compared_B2 = self.compared_logprobs(network, batch)
            for place, one in zip(places, compared_B2.detach().float().cpu(), strict=True):
                if place != DUMMY_ROW and found[place].isinf().all():
                    found[place] = one
        found = found.to(args.device)
        if world > 1:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return found

    def measured_batch(self) -> dict[str, Any]:
        batch = super().measured_batch()
        return {**batch, "references": torch.zeros(len(self.weights_of(batch)), 2)}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        inputs["references"] = self._references[0][inputs[ROW_IDS].to(self.args.device)]
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluated_batch(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return super().evaluated_batch(model, {**batch, "references": self._references[1][batch[ROW_IDS]]})
