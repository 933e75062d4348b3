"""The trained part of a network (all, LoRA adapters, the last layers), and activation checkpointing."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from hanmo.checkpoints.adapter import ADAPTER_WEIGHTS, untie
from hanmo.errors import ConfigError, quoted
from hanmo.families.base import OpenedModel
from hanmo.folders import new_folder
from hanmo.nn.row_model import ValueKind, attach_value_head
from hanmo.nn.tensor_parallel import tell_widths


@dataclass(frozen=True)
class LoraSettings:
    """Settings of LoRA adapters.

    Attributes:
        rank: inner dimension of the two matrices whose product is added to a weight (Hu et al. 2021, "LoRA"). [r]
        alpha: the product is scaled by alpha / rank. [α]
        dropout: probability of dropping an input of an adapter. [p, probability]
        targets: names of the linear modules to adapt, e.g. [q_proj, v_proj]; empty: the family's own.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank}: must be at least 1; without adapters, leave lora out")
        if self.alpha < 1:
            raise ConfigError(f"lora.alpha={self.alpha}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout}: must be 0 or more, below 1")


def add_lora(network: Any, settings: LoraSettings, targets: Sequence[str], whole: Sequence[str] = ()) -> Any:
    """The network with LoRA adapters, which alone are trained.

    An adapter changes a single module: a weight that the embedding and the output head share is split into two if one
    of them is adapted, and the configuration is changed accordingly.

    Args:
        targets: names of the linear modules to adapt, where the settings name none.
        whole: modules that are trained without adapters, and saved in checkpoints.

    Raises:
        ConfigError: no targets, or no module has such a name.
        UnsupportedError: a target shares its weight and the model's configuration cannot untie it.
    """
    from peft import LoraConfig, get_peft_model

    names: Any = list(settings.targets or targets)
    if not names:
        raise ConfigError("lora.targets: this family names none; give the names of linear modules, e.g. [q_proj]")
    if names == ["all-linear"]:
        names = "all-linear"  # peft's name for all but the head
    else:
        untie(network, names)
    modules = {"target_modules": names, "modules_to_save": list(whole) or None}
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, **modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses an attribute's old name in transformers
            adapted = get_peft_model(network, config)
    except ValueError as error:
        known = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        raise ConfigError(f"lora.targets: {quoted(error)}; linear modules here: {', '.join(sorted(known))}") from None
    tell_widths(adapted)
    # With a name, saving would query the hub for that model.
    adapted.peft_config["default"].base_model_name_or_path = ""
    return adapted


def adapted(
    opened: OpenedModel, lora: dict[str, Any], trained_layers: float | None = None, value_head: ValueKind | None = None,
    critic: Any = None,
) -> Any:  # fmt: skip
    """The network to train: with adapters or frozen layers, and a value head, which is trained whole.

    A network that has a value head keeps it.

    Args:
        trained_layers: see ``keep_top_layers``; None trains all layers.
        critic: a separate network with the value head; its layers are frozen or adapted in the same way.
    """
    network = opened.network
    if value_head and (critic or network).value_head is None:
        attach_value_head(critic or network, value_head)
    network.critic = critic
    if trained_layers is not None:
        keep_top_layers(network, trained_layers)
    if not lora:
        return network
    return add_lora(network, LoraSettings(**lora), opened.family.lora_targets, ("value_head",) if value_head else ())


def adapter_tensors(network: Any) -> dict[str, Tensor]:
    """The trained tensors of a network with adapters, under peft's names; whole if they are cut: all processes call this."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(network, network.state_dict(), save_embedding_layers=False)
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous().clone()
        for name, tensor in found.items()
    }


def save_adapter(network: Any, tensors: dict[str, Tensor], folder: Path, base: str) -> None:
    """Write an adapter in peft's form, which names its ``base``; whole or not at all."""
    config = copy.copy(network.peft_config["default"])
    config.inference_mode, config.base_model_name_or_path = True, base
    if all("lora_" in name for name in tensors):  # what was trained whole beside them was the run's alone
        config.modules_to_save = None
    with new_folder(folder) as draft:
        config.save_pretrained(str(draft))
        save_file(tensors, draft / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def merged(network: Any) -> Any:
    """The network with its adapters, if it has any, added to its weights."""
    if not hasattr(network, "merge_and_unload"):
        return network
    with implicit_replication():  # of a cut layer's two LoRA matrices one is cut, and every rank has the other whole
        return network.merge_and_unload()


def checkpoint_layers(network: Any, selective: bool) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again there; gradients stay the same.

    With ``selective`` the results of matrix products and attention are kept too, and only cheap operations (norms,
    activations, dropout) are computed again.

    Source: Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models".
    """
    aten = torch.ops.aten
    expensive = [
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    ]
    selected = {"context_fn": partial(create_selective_checkpoint_contexts, expensive)} if selective else {}
    # transformers before 5.23 has only the second name, later versions warn about it.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False, **selected})


def freeze_layers(network: nn.Module, share: float) -> list[str]:
    """Freeze the first int(share x n) of the n layers of every stack, 0 <= share <= 1; returns the layers' names.

    Embeddings, last norms and the head stay trainable.
    """
    return _freeze(network, lambda count: int(share * count))


def keep_top_layers(network: nn.Module, trained: float) -> list[str]:
    """Freeze all but the last layers of every stack, as published for reward models and PPO; returns the frozen names.

    ``trained`` is the number of last layers, or below 1 a share of the stack, rounded down; less than one trains all.
    """

    def frozen(count: int) -> int:
        top = int(trained * count if trained < 1 else trained)
        return count - top if top else 0

    return _freeze(network, frozen)


def _freeze(network: nn.Module, first: Callable[[int], int]) -> list[str]:
    """Freeze the first layers of every stack, ``first(n)`` of its n; returns their names."""
    names = []
    for name, stack in stacks(network).items():
        frozen = range(min(first(len(stack)), len(stack)))
        stack[: len(frozen)].requires_grad_(False)
        names += [f"{name}.{place}" for place in frozen]
    return names


def stacks(network: nn.Module) -> dict[str, nn.ModuleList]:
    """The stacks of layers of a network, by name; what is inside a layer is none."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    return {name: stack for name, stack in found.items() if not any(name.startswith(f"{outer}.") for outer in found)}


def compile_layers(network: nn.Module, backend: str | Callable[..., Any], mode: str | None) -> None:
    """Compile each layer at its first use, once for layers that are alike.

    Not the head, whose number of scored places changes from batch to batch; nor what is computed once in a pass.
    """
    for stack in stacks(network).values():
        for layer in stack:
            layer.compile(backend=backend, mode=mode)


def switch_dropout_off(network: nn.Module) -> None:
    """Set every dropout rate of a network to 0, so that it computes the same while it is trained."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
