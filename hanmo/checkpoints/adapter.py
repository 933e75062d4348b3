"""Applies LoRA adapters in peft's form to the weights of an open model; peft itself is not needed.

The folder of an adapter is a stranger's. Two files of it are read, both as data. Of its configuration a few numbers are
used, never its names of base models, modules of Python or patterns of layers: which weights change is what the names of its
tensors say, and each must fit the network.
"""

import copy
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hanmo.checkpoints.locate import local_folder
from hanmo.checkpoints.originals.unpickle import read_safetensors
from hanmo.errors import CheckpointError, UnsupportedError
from hanmo.families.safe_loading import ADAPTER_CONFIG
from hanmo.files import read_json
from hanmo.nn.row_model import attach_value_head

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")
# What changes the result of an adapter and is not plain LoRA.
_OTHER_KINDS = (
    "alora_invocation_tokens", "arrow_config", "ensure_weight_tying", "kasa_config", "layer_replication", "lora_bias",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora",
    "use_qalora",
)  # fmt: skip
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # other ways to begin change the base's weights too


def apply_adapter(network: Any, place: str | Path) -> None:
    """Add an adapter's products to the weights that they are for, and take over the modules that it holds whole.

    An adapter of a reward model brings its value head. Weights that an adapted module shares with another are untied.

    Source: Hu et al. 2021, "LoRA", section 4.1.

    Raises:
        CheckpointError: no adapter there, a damaged one, or one of another model: a tensor that the network has no place for.
        UnsupportedError: weights in a pickle, or something other than LoRA.
    """
    folder = local_folder(place)
    config, tensors = _read(folder)
    if heads := [name for name in tensors if name.startswith("value_head.")]:
        attach_value_head(network, "mlp" if any(name.startswith("value_head.inner.") for name in heads) else "linear")
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := _MATRIX.fullmatch(name):
            pairs.setdefault(found[1], {})[found[2]] = tensor
        else:
            whole[name.replace(".base_layer.", ".")] = tensor
    kept = tuple(config.get("modules_to_save") or ())
    untie(network, [*pairs, *(name.rpartition(".")[0] for name in whole if _belongs(name.rpartition(".")[0], kept))])
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in whole.items():
            _require_fit(folder, name, tensor, parameters.get(name))
            parameters[name].copy_(tensor)
        for name, pair in pairs.items():
            _merge(folder, name, modules.get(name), pair, _alpha(config, name), bool(config.get("use_rslora")))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, checked, and the tensors, by the names that the base model has for them."""
    file, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{folder}: no adapter in it: expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    if not weights.is_file() and (pickled := weights.with_suffix(".bin")).is_file():
        advice = "open it where you trust it and save it with peft, which writes safetensors"
        raise UnsupportedError(f"{pickled}: a pickle; adapters are read from safetensors alone; {advice}")
    config = read_json(file)
    if config.get("peft_type") != "LORA":
        raise UnsupportedError(f"{file}: peft_type is {config.get('peft_type')!r}; hanmo applies LORA alone")
    other = [f"{key}={config[key]!r}"[:80] for key in _OTHER_KINDS if config.get(key)]
    start = config.get("init_lora_weights")
    other += [] if start in _STARTS else [f"init_lora_weights={start!r}"[:80]]
    if other:
        raise UnsupportedError(f"{file}: {', '.join(other)}: not plain LoRA; merge it into its model with peft")
    alpha, patterns, saved = (config.get(key) for key in ("lora_alpha", "alpha_pattern", "modules_to_save"))
    patterns = patterns or {}
    alphas = [alpha, *patterns.values()] if isinstance(patterns, dict) else [None]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in alphas):
        raise CheckpointError(f"{file}: lora_alpha and alpha_pattern must give finite numbers")
    if not isinstance(saved or [], list) or not all(isinstance(name, str) for name in saved or []):
        raise CheckpointError(f"{file}: modules_to_save must be a list of names")
    if strange := [name for name in patterns if not re.fullmatch(r"[\w.]+", name)]:
        raise UnsupportedError(f"{file}: alpha_pattern has {strange[0][:80]!r}; hanmo takes plain names of modules")
    tensors = read_safetensors(weights)
    if not tensors:
        raise CheckpointError(f"{weights}: holds no tensors")
    if wrong := [name for name in tensors if not name.startswith(_PREFIX)]:
        raise CheckpointError(f"{weights}: {wrong[0][:80]!r} is no name that peft gives, which begin with {_PREFIX}")
    return config, {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _belongs(module: str, names: Sequence[str]) -> bool:
    """Whether a module, or one that holds it, is among the names of whole modules, as peft matches them."""
    return any(f".{name}." in f".{module}." for name in names)


def _alpha(config: dict[str, Any], module: str) -> float:
    patterns = config.get("alpha_pattern") or {}
    return next((value for name, value in patterns.items() if f".{module}".endswith(f".{name}")), config["lora_alpha"])


def _merge(
    folder: Path, name: str, module: nn.Module | None, pair: dict[str, Tensor], alpha: float, rank_root: bool
) -> None:
    """Add alpha / rank x B A to the weight of a linear layer, or its transpose to that of an embedding."""
    if len(pair) < 2:
        raise CheckpointError(f"{folder}: of {name} lora_{'B' if 'A' in pair else 'A'} is missing")
    weight = module.weight if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)) else None
    down, up = pair["A"], pair["B"]
    turned = not isinstance(module, nn.Linear)
    if down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] > 0:
        shape = torch.Size((down.shape[1], up.shape[0]) if turned else (up.shape[0], down.shape[1]))
        _require_fit(folder, name, torch.empty(shape, dtype=down.dtype, device="meta"), weight)
    else:
        raise CheckpointError(
            f"{folder}: lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} of {name} do not multiply"
        )
    assert weight is not None
    down, up = (tensor.to(weight.device, torch.float32) for tensor in (down, up))
    rank = down.shape[0]
    product = alpha / (math.sqrt(rank) if rank_root else rank) * (up @ down)
    weight.copy_(weight.float() + (product.T if turned else product))


def _require_fit(folder: Path, name: str, tensor: Tensor, weight: Tensor | None) -> None:
    if weight is None or not weight.is_floating_point():
        missing = "the model has no such weight" if weight is None else f"the model's weight is {weight.dtype}"
        raise CheckpointError(f"{folder}: {name[:200]}: {missing}; an adapter belongs to the model it was trained on")
    if tensor.shape != weight.shape or not tensor.is_floating_point():
        found = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise CheckpointError(
            f"{folder}: for {name} it has {found}, the model {tuple(weight.shape)}; give its own model"
        )


def untie(network: Any, targets: Sequence[str]) -> None:
    """If a target shares its weight with another module, give all modules with shared weights separate copies."""
    tied = network.all_tied_weights_keys
    holders = {name.rpartition(".")[0] for name in (*tied.keys(), *tied.values())}
    adapted = [name for name in holders if any(f".{name}".endswith(f".{target}") for target in targets)]
    parameters = dict(network.named_parameters(remove_duplicate=False))
    same = [name for name, source in tied.items() if parameters[name] is parameters[source]]
    if not adapted or not same:
        return
    _untie_in_config(network.config)
    for name in same:
        module, _, weight = name.rpartition(".")
        own = nn.Parameter(parameters[name].detach().clone(), parameters[name].requires_grad)
        setattr(network.get_submodule(module), weight, own)
    network.all_tied_weights_keys = {name: source for name, source in tied.items() if name not in same}


def _untie_in_config(config: Any) -> None:
    """Let the output head have a weight of its own when the model is opened again; T5's configuration always ties it."""
    for one in (changed := copy.deepcopy(config)), changed.get_text_config():
        one.tie_word_embeddings = False
    if type(config).from_dict(changed.to_dict()).to_dict() != changed.to_dict():
        raise UnsupportedError(
            f"an adapter on a weight that others use: the output head of {config.model_type} shares its weight with the "
            "embedding, and its configuration cannot express two: leave both out (lora.targets)"
        )
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
