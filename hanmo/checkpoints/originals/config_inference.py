"""The configuration of an original checkpoint: from a file, from a released size's name, or from the shapes."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME

from hanmo import families
from hanmo.checkpoints.originals.recognise import Original, some
from hanmo.checkpoints.originals.weights import Weights
from hanmo.config import check_fields
from hanmo.errors import CheckpointError, ConfigError, unknown
from hanmo.families.base import Family
from hanmo.families.safe_loading import as_hanmo_error
from hanmo.families.untrusted import check_counts
from hanmo.files import read_json

NO_NETWORK = "describes no network that can be built"
_SLACK = 10_000_000  # parameters that a network may have beyond those in its files
Shapes = dict[str, tuple[int, ...]]


def infer_config(
    original: Original, size: str | None = None, config: str | Path | None = None
) -> tuple[PretrainedConfig, str | None]:
    """Our configuration for these weights, and the name of the released size if it is one.

    In this order: ``config``, an original configuration file; ``size``, a released size by name; config.json beside
    the weights; the one released size that has these shapes. CheckpointError if nothing settles it, or shapes differ.
    """
    if config is not None and size is not None:
        raise ConfigError("give a size or a configuration file, not both")
    form = original.family.original_format
    if config is not None:
        given = read_json(Path(config))
        check_counts(given, len(original.shapes), config)
        settings = {**_dimensions(original), **form.read_config(given)}
    elif size is not None:
        settings = form.SIZES[find_size(original.family, size)].config
    elif original.weights.config is not None:
        settings = form.read_config(original.weights.config)
    else:
        settings = _by_shapes(original)
    where = config or original.weights.folder / CONFIG_NAME
    check_fields(original.family.config_class, settings, str(where))
    with as_hanmo_error(where, NO_NETWORK):
        inferred = _build(original, settings)
        differences = _differences(original, inferred)
    if differences:
        wrong = f"{len(differences)} tensors do not have the shapes of this configuration: {some(differences, 4)}"
        advice = "give the model's own configuration (--config) or size (--size)"
        raise CheckpointError(f"{original.weights.path}: {wrong}; {advice}")
    named = (name for name, released in form.SIZES.items() if _same(released.config, inferred))
    return inferred, next(named, None)


def _by_shapes(original: Original) -> dict[str, Any]:
    """The one released configuration with these shapes, or the dimensions if sizes differ in no more."""
    sizes, dimensions = original.family.original_format.SIZES, _dimensions(original)
    candidates = [name for name, size in sizes.items() if _fits(original, size.config)]
    if len(candidates) == 1:
        return sizes[candidates[0]].config
    where = f"{original.weights.path} ({original.family.name})"
    if candidates:
        problem = f"the shapes are those of {' and '.join(candidates)}, which compute differently"
        raise CheckpointError(f"{where}: {problem}; name one: --size {' or --size '.join(candidates)}")
    configs = [size.config for size in sizes.values()]
    deciding = {key for one in configs for key in one if any(other.get(key) != one[key] for other in configs)}
    if deciding <= dimensions.keys():
        return dimensions
    lack = f", and its shapes do not say {', '.join(sorted(deciding - dimensions.keys()))}" if dimensions else ""
    embedding = next(iter(original.shapes.values()))
    problem = f"has no config.json and is of no released size (its embedding is {embedding}){lack}"
    advice = f"give the original's configuration file: --config FILE (released: {', '.join(sizes)})"
    raise CheckpointError(f"{where}: {problem}; {advice}")


def _build(original: Original, settings: dict[str, Any]) -> PretrainedConfig:
    """A configuration with the settings that the files imply: the number of embedding rows, and half precision."""
    in_half = original.layout.in_half if original.weights.dtype == torch.float16 else {}
    config = original.family.config_class(**{**settings, **original.layout.implies, **in_half})
    if shape := original.shapes.get(input_embedding(original.family)):
        config.vocab_size = shape[0]
    return config


def _dimensions(original: Original) -> dict[str, Any]:
    """The settings that follow from the shapes; empty for families whose shapes determine nothing."""
    form, shapes = original.family.original_format, original.shapes
    if not hasattr(form, "dimensions"):
        return {}
    return form.dimensions({entry.theirs: _fused(entry.ours, shapes) for entry, _ in original.present()})


def _fits(original: Original, settings: dict[str, Any]) -> bool:
    config = original.family.config_class(**settings)
    if any(getattr(config, over) != count for over, count in vars(original.counts).items()):
        return False  # a different depth shows without building the network
    return not _differences(original, _build(original, settings))


def find_size(family: type[Family], name: str) -> str:
    """The family's released size of this name or alias, in any case; raises ConfigError if it has none."""
    names = size_names(family)
    if name.lower() in names:
        return names[name.lower()]
    for other in families.ours():
        if name.lower() in size_names(other):
            raise ConfigError(f"{name} is a size of {other.name}, but these weights are {family.name}'s")
    raise ConfigError(unknown("size", name, names))


def size_names(family: type[Family]) -> dict[str, str]:
    """The family's released size of every name and alias, in lower case."""
    sizes = family.original_format.SIZES
    return {alias.lower(): name for name, size in sizes.items() for alias in (name, *size.aliases)}


@functools.cache
def input_embedding(family: type[Family]) -> str:
    """The name of the token embedding in our networks of any size."""
    network = blank_network(family, family.config_class())
    weight = network.get_input_embeddings().weight
    return next(name for name, parameter in network.named_parameters() if parameter is weight)


def blank_network(family: type[Family], config: PretrainedConfig, folder: Path | None = None) -> Any:
    """A network on the meta device, without memory for its weights; ``folder``: of a model of transformers."""
    if family.name == families.TRANSFORMERS:
        return family.network_class.blank(folder, config)
    with torch.device("meta"):
        return family.network_class(config)


def check_size(family: type[Family], config: PretrainedConfig, weights: Weights) -> None:
    """Raise CheckpointError if a network has more parameters than its files have bytes, before it allocates them."""
    network = blank_network(family, config, weights.path)
    described = sum(tensor.numel() for tensor in network.parameters())
    size = sum(file.stat().st_size for file in weights.files)
    packed = 8 if getattr(config, "quantization_config", None) else 1  # parameters per byte
    if described > packed * size + _SLACK:
        problem = f"describes a network of {described:,} numbers, but the files of weights have {size:,} bytes"
        raise CheckpointError(f"{weights.path / 'config.json'}: {problem}")


def expected_shapes(family: type[Family], config: PretrainedConfig) -> Shapes:
    """The shapes of our network's tensors, without the names that are tied to others."""
    return dict(_shapes(family, config.to_json_string()))


@functools.lru_cache(maxsize=8)  # a deep network takes a tenth of a second to build, even without its weights
def _shapes(family: type[Family], config: str) -> Shapes:
    network = blank_network(family, family.config_class.from_dict(json.loads(config)))
    tied = network.all_tied_weights_keys
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in tied}


def absent_tensors(original: Original, config: PretrainedConfig) -> list[str]:
    """Our optional tensors that the files lack."""
    found = original.shapes
    return [name for name in expected_shapes(original.family, config) if name not in found]


def _differences(original: Original, config: PretrainedConfig) -> list[str]:
    """The tensors that do not fit a configuration, as text; optional tensors may be absent."""
    expected, found = expected_shapes(original.family, config), original.shapes
    result: list[str] = []
    known: set[str] = set()
    for entry, name in original.present():
        known.update(entry.ours)
        ours = [name for name in entry.ours if name in expected]
        if not ours:
            result.append(f"{name} {_fused(entry.ours, found)} has no place in it")
        elif any(found[name] != expected[name] for name in entry.ours):
            result.append(f"{name} is {_fused(entry.ours, found)}, expected {_fused(entry.ours, expected)}")
    optional = {ours for entry in original.entries if entry.optional for ours in entry.ours}
    result += [f"{name} {expected[name]} is missing" for name in expected if name not in known | optional]
    return result


def _fused(names: Sequence[str], shapes: Shapes) -> tuple[int, ...]:
    """The shape of the original's tensor that holds these of ours one after the other."""
    return (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])


def _same(released: dict[str, Any], config: PretrainedConfig) -> bool:
    """Whether a configuration is a released size's, apart from the vocabulary and the settings of training."""
    free = ("vocab_size", "initializer_range")
    deciding = [key for key in released if key not in free and "drop" not in key]
    return all(getattr(config, key) == released[key] for key in deciding)
