"""transformers' Trainer for networks spread over several processes by tensor parallelism or FSDP2."""

import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner, state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from hanmo.errors import CheckpointError, ConfigError, quoted
from hanmo.files import plain_name
from hanmo.nn.tensor_parallel import each_pass_alone, is_cut
from hanmo.training.trainable import adapter_tensors, merged

SHARDS = "slices"  # the folder in a checkpoint to which every process writes its part


class _ProcessorRanks(ParallelismConfig):
    """Allows tensor parallelism on CPUs: it works, but accelerate's check refuses it."""

    def _validate_accelerator(self, accelerator: Any) -> None:
        assert accelerator.num_processes == self.tp_size


class ShardedTrainer(Trainer):
    """A Trainer in which each process saves its own shards of a network spread over several.

    transformers cannot save the optimizer of a cut network, nor with FSDP2 read parameters that never had a gradient.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments, *others: Any, **named: Any):
        if is_cut(model) and args.use_cpu:
            args.parallelism_config = _ProcessorRanks(tp_size=model.tp_size)
        only_model = args.save_only_model
        args.save_only_model |= is_cut(model)  # transformers refuses to save a cut network's optimizer; we do it
        super().__init__(model, args, *others, **named)
        args.save_only_model = only_model

    def create_accelerator_and_postprocess(self) -> None:
        """Shard parameters on CPUs too where FSDP is set; accelerate silently does it on GPUs alone."""
        state = PartialState()
        if self.args.fsdp and state.distributed_type is DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()
        if self.accelerator.is_fsdp2 and "state_dict_type" in (self.args.fsdp_config or {}):
            raise ConfigError("trainer.fsdp_config.state_dict_type: every process saves its share; leave it out")

    @property
    def _saves_shards(self) -> bool:
        """Whether each process writes and reads its own part, rather than rank 0 the whole."""
        return is_cut(self.model) or self.accelerator.is_fsdp2

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        with each_pass_alone(self.model) if is_cut(self.model) else nullcontext():
            return super().training_step(model, inputs, num_items_in_batch)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Drop empty groups of parameters (adapters have none without decay), which torch cannot load.

        ConfigError if the optimizer does not take one of its settings.
        """
        try:
            optimizer = super().create_optimizer(*args, **kwargs)
        except ValueError as error:
            raise ConfigError(f"the settings of trainer for the optimizer: {quoted(error)}") from error
        if self._saves_shards:
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def final_model(self, network: Any) -> tuple[Any, dict[str, Tensor] | None]:
        """The network without adapters, and its weights if FSDP or ZeRO-3 shards them; all processes call this."""
        if self.is_fsdp_enabled:
            for module in network.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # the last pass may have left the outermost module unsharded
            return (trained := merged(network)), self.accelerator.get_state_dict(trained)
        if not self.is_deepspeed_enabled or self.accelerator.deepspeed_plugin.zero_stage < 3:
            return merged(network), None
        if not hasattr(network, "merge_and_unload"):
            engine: Any = self.model_wrapped
            return network, engine._zero3_consolidated_16bit_state_dict()
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(network.parameters())):
            trained = merged(network)
            return trained, {name: tensor.cpu().clone() for name, tensor in trained.state_dict().items()}

    def final_adapter(self, network: Any) -> dict[str, Tensor]:
        """The tensors of the adapters, before ``final_model`` merges them; all processes call this."""
        if not self.is_deepspeed_enabled or self.accelerator.deepspeed_plugin.zero_stage < 3:
            return adapter_tensors(network)
        import deepspeed

        with deepspeed.zero.GatheredParameters([one for one in network.parameters() if one.requires_grad]):
            return adapter_tensors(network)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self._saves_shards:
            super().save_model(output_dir, _internal_call)
            return
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        optimizer: Any = self.optimizer
        optimizer = None if self.args.save_only_model else optimizer.optimizer
        dcp.save(_shards(self.model, optimizer), checkpoint_id=Path(output_dir) / SHARDS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._saves_shards:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._saves_shards:
            load_shards(self.model, None, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._saves_shards:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer: Any = self.optimizer
        assert self.lr_scheduler is not None
        load_shards(self.model, optimizer.optimizer, checkpoint)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_best_model(self) -> None:
        if self._saves_shards:
            load_shards(self.model, None, str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()


def load_shards(network: Any, optimizer: torch.optim.Optimizer | None, checkpoint: str) -> None:
    """Read what every process saved, without an optimizer only the weights; all processes call this."""
    folder = Path(checkpoint) / SHARDS
    _check_metadata(folder / ".metadata")
    state = _shards(network, optimizer)
    dcp.load(state, checkpoint_id=folder, planner=DefaultLoadPlanner(allow_partial_load=True))
    state_dict.set_model_state_dict(network, state["network"], options=state_dict.StateDictOptions(strict=False))
    if optimizer is None:
        return
    state_dict.set_optimizer_state_dict(network, optimizer, state["optimizer"], options=_BY_NAME)
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    for name, parameter in network.named_parameters():
        # A parameter that never had a gradient has no state; torch has made an empty one to read into.
        if not any(key.startswith(f"optimizer.state.{name}.") for key in stored):
            optimizer.state.pop(parameter, None)


# What torch pickles in the description of a checkpoint's slices.
_DESCRIBES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


class _Description(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _DESCRIBES.get(module, ()):
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is code; refused")
        return super().find_class(module, name)


def _check_metadata(file: Path) -> None:
    """Raise CheckpointError unless a description of slices, which torch unpickles, names nothing but its own classes."""
    try:
        with file.open("rb") as opened:
            described = _Description(opened).load()
        names = {info.relative_path for info in described.storage_data.values()}
    except Exception as error:  # a malformed file can make the reader fail in any way
        raise CheckpointError(f"{file}: not the description of a checkpoint: {quoted(error):.500}") from error
    for name in names:
        plain_name(name, file)


_BY_NAME = state_dict.StateDictOptions(flatten_optimizer_state_dict=True)


def _shards(network: Any, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """This process's part of the trained weights and of the optimizer's states."""
    trained = state_dict.StateDictOptions(ignore_frozen_params=True)
    found: dict[str, Any] = {"network": state_dict.get_model_state_dict(network, options=trained)}
    if optimizer is not None:
        found["optimizer"] = state_dict.get_optimizer_state_dict(network, optimizer, options=_BY_NAME)
    return found
