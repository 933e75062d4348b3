"""Training on streams: the memory of one batch is given to the next."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.data.rows.documents import StreamSampler
from hanmo.nn.cpu.malloc import keep_heap
from hanmo.training.restoring import restoring
from hanmo.training.trainer import RowTrainer

Memory = tuple[Tensor, ...]


class StreamTrainer(RowTrainer):
    """Trains a network with memory on ``StreamRows``: place p of every batch is the next segment of stream p.

    Memory is carried from batch to batch, over accumulated steps and epochs too; each process keeps that of its places
    (of a cut network, of all) and saves it in checkpoints. Every evaluation starts without memory and has its own.
    """

    _memory: Memory = ()
    _memory_of_evaluation: Memory = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            keep_heap()  # all steps are of one shape

    def _get_train_sampler(self, train_dataset: Any = None) -> StreamSampler:
        rows: Any = train_dataset or self.train_dataset
        return StreamSampler(len(rows), self.args.train_batch_size * self._replicas, laps=rows.laps)

    def _get_eval_sampler(self, eval_dataset: Any) -> StreamSampler:
        batch = min(self.args.eval_batch_size * self._replicas, len(eval_dataset))
        return StreamSampler(len(eval_dataset), batch, once=True)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, output = super().compute_loss(model, {**inputs, "memory": self._memory}, True, num_items_in_batch)
        self._memory = output.memory
        return (loss, output) if return_outputs else loss

    def _evaluated_output(self, model: nn.Module, inputs: dict[str, Tensor]) -> Any:
        output = model(**inputs, memory=self._memory_of_evaluation)
        self._memory_of_evaluation = output.memory
        return output

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._memory_of_evaluation = ()
        return super().evaluation_loop(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save([tensor.cpu() for tensor in self._memory], Path(output_dir) / f"memory_{self.args.process_index}.pt")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            file = Path(checkpoint) / f"memory_{self.args.process_index}.pt"
            with restoring(file):
                # Through the CPU: torch.load does not accept "cpu:0", the device of a rank without a GPU.
                kept = torch.load(file, map_location="cpu", weights_only=True)
                self._memory = tuple(tensor.to(self.args.device) for tensor in kept)
