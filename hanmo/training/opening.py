"""Opens the model that a run starts from, in fp32, or makes one with random weights."""

from pathlib import Path
from typing import Any

from hanmo import families
from hanmo.checkpoints import open_model
from hanmo.checkpoints.locate import locate
from hanmo.checkpoints.originals.config_inference import blank_network, size_names
from hanmo.errors import ConfigError, unknown
from hanmo.families.base import Family, OpenedModel
from hanmo.nn.gpu import leave_cudnn_attention_out
from hanmo.training.config import RunConfig

NEW = "init:"  # a model of random weights: init:SIZE


def open_for_training(config: RunConfig, blank: bool = False) -> OpenedModel:
    """The model that the settings name, with fp32 weights, which the optimizer needs, whatever dtype its files have.

    ``blank``: weights of the meta device, which have shapes alone; those of a model that is to be cut are whole.
    """
    model, ranks = config.model, config.tensor_parallel
    originals: dict[str, Any] = {"size": config.size, "config": config.original_config, "rules": config.rules}
    originals["adapter"] = config.adapter
    if model.startswith(NEW):
        if ranks > 1:
            raise ConfigError(f"tensor_parallel: {model} has no files to cut; train it for a step in one process first")
        if given := [name for name, value in (*originals.items(), ("template", config.template)) if value]:
            raise ConfigError(f"{model}: {' and '.join(given)} cannot be given for a new model")
        return new_model(model.removeprefix(NEW), config.shape, config.vocab, blank)
    if config.shape:
        raise ConfigError(f"shape: only a new model ({NEW}SIZE) can be given one; {model} has its own")
    # Parts of a split model are loaded onto their devices; the Trainer itself moves a whole model there.
    device, ranks = ("cpu", 1) if blank else (None if ranks > 1 else "cpu", ranks)
    return open_model(
        model, **originals, vocab=config.vocab, dtype="fp32", device=device, tensor_parallel=ranks, template=config.template,
        blank=blank,
    )  # fmt: skip


def new_model(size: str, shape: dict[str, Any], vocab: str | None, blank: bool = False) -> OpenedModel:
    """A network of random weights: a released size of any family, with ``shape`` in place of its own configuration."""
    family, name = find_size(size)
    leave_cudnn_attention_out()
    if vocab is None:
        raise ConfigError(f"{NEW}{size}: a new model needs a vocabulary: vocab=FILE")
    if not Path(vocab).exists():
        raise ConfigError(f"vocab: no such file: {vocab}")
    tokenizer = family.tokenizer_class(vocab_file=vocab)
    released = family.original_format.SIZES[name].config
    for key in shape:
        if key not in released or key == "vocab_size":
            raise ConfigError(unknown("setting of shape", key, set(released) - {"vocab_size"}))
    config = family.config_class(**{**released, "vocab_size": len(tokenizer), **shape})
    opened = family(config, tokenizer)
    network = blank_network(family, opened.config) if blank else family.network_class(opened.config)
    return OpenedModel(network, opened, f"{name}, random weights")


def find_size(size: str) -> tuple[type[Family], str]:
    """The family and the released size of a name or alias."""
    for family in families.ours():
        if name := size_names(family).get(size.lower()):
            return family, name
    raise ConfigError(unknown("size", size, [name for family in families.ours() for name in size_names(family)]))


def family_name(model: str) -> str:
    """The family of a model, from its size, folder or original files, without opening it."""
    if model.startswith(NEW):
        return find_size(model.removeprefix(NEW))[0].name
    return locate(model).family.name
