"""The configuration of an original checkpoint: from a file, from a released size's name, or from the shapes."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from hanmo import families
from hanmo.checkpoints.originals.locate import Weights
from hanmo.checkpoints.originals.recognise import Original, all_families, some
from hanmo.errors import CheckpointError, ConfigError, unknown
from hanmo.families.base import Family
from hanmo.families.untrusted import check_counts
from hanmo.files import read_json

_SLACK = 10_000_000  # parameters that a network may have beyond its files
Shapes = dict[str, tuple[int, ...]]


def infer_config(
    original: Original, size: str | None = None, config: str | Path | None = None
) -> tuple[PretrainedConfig, str | None]:
    """Our configuration for these weights, and the name of the released size if it is one.

    In this order: ``config``, an original configuration file; ``size``, a released size by name; config.json beside
    the weights; the one released size that has these shapes. The number of embedding rows is always the file's.

    Raises:
        CheckpointError: nothing decides (says what would), or the weights have other shapes (says which).
    """
    if config is not None and size is not None:
        raise ConfigError("give a size or a configuration file, not both")
    legacy = original.family.original_format
    if config is not None:
        given = read_json(Path(config))
        check_counts(given, len(original.shapes), config)
        said = {**_dimensions(original), **legacy.read_config(given)}
    elif size is not None:
        said = legacy.SIZES[find_size(original.family, size)].config
    elif original.weights.config is not None:
        said = legacy.read_config(original.weights.config)
    else:
        said = _by_shapes(original)
    settled = _build(original, said)
    if differences := _differences(original, settled):
        raise CheckpointError(
            f"{original.weights.path}: {len(differences)} tensors do not have the shapes of this configuration: "
            f"{some(differences, 4)}; give the model's own configuration (--config) or size (--size)"
        )
    named = (name for name, released in legacy.SIZES.items() if _same(released.config, settled))
    return settled, next(named, None)


def _by_shapes(original: Original) -> dict[str, Any]:
    """The one released configuration that has these shapes, or what the shapes say if that is all."""
    sizes = original.family.original_format.SIZES
    candidates = [name for name in sizes if _fits(original, name)]
    if len(candidates) == 1:
        return sizes[candidates[0]].config
    if not candidates and _deciding_keys(original) <= _dimensions(original).keys():
        return _dimensions(original)
    raise CheckpointError(_ask(original, candidates))


def _build(original: Original, said: dict[str, Any]) -> PretrainedConfig:
    """A configuration with what these files imply: their number of embedding rows, and half precision."""
    implied = {**original.layout.implies, **(original.layout.in_half if original.dtype == torch.float16 else {})}
    config = original.family.config_class(**{**said, **implied})
    shape = original.shapes.get(input_embedding(original.family))
    if shape:
        config.vocab_size = shape[0]
    return config


def _dimensions(original: Original) -> dict[str, Any]:
    """The configuration as far as the shapes of the files say it."""
    legacy = original.family.original_format
    if not hasattr(legacy, "dimensions"):
        return {}
    shapes = original.shapes
    return legacy.dimensions({entry.theirs: _fused(entry.ours, shapes) for entry, _ in original.present()})


def _deciding_keys(original: Original) -> set[str]:
    """The keys in which the released sizes differ: a configuration must say them all."""
    sizes = [size.config for size in original.family.original_format.SIZES.values()]
    return {key for config in sizes for key in config if any(other.get(key) != config[key] for other in sizes)}


def _fits(original: Original, size: str) -> bool:
    said = original.family.original_format.SIZES[size].config
    config = original.family.config_class(**said)
    if any(getattr(config, over) != count for over, count in vars(original.counts).items()):
        return False  # another depth: known without building the network
    return not _differences(original, _build(original, said))


def find_size(family: type[Family], name: str) -> str:
    """The name in the family's SIZES that is meant: case and aliases do not matter.

    Raises:
        ConfigError: no such size; says the nearest, or whose size it is.
    """
    wanted = name.lower()
    names = _size_names(family)
    if wanted in names:
        return names[wanted]
    for other in all_families():
        if wanted in _size_names(other):
            raise ConfigError(f"{name} is a size of {other.name}, but these weights are {family.name}'s")
    raise ConfigError(unknown("size", name, names))


def _size_names(family: type[Family]) -> dict[str, str]:
    sizes = family.original_format.SIZES
    return {alias.lower(): name for name, size in sizes.items() for alias in (name, *size.aliases)}


@functools.cache
def input_embedding(family: type[Family]) -> str:
    """The name of the token embedding in our network; it does not depend on sizes."""
    network = blank_network(family, family.config_class())
    weight = network.get_input_embeddings().weight
    return next(name for name, parameter in network.named_parameters() if parameter is weight)


def blank_network(family: type[Family], config: PretrainedConfig) -> Any:
    """Our network without memory for its weights."""
    with torch.device("meta"):
        return family.network_class(config)


def check_size(family: type[Family], config: PretrainedConfig, weights: Weights) -> None:
    """Check that a folder's files can fill the network of its configuration: missing weights would be allocated.

    Raises:
        CheckpointError: the network has more parameters than the files have bytes.
    """
    ours = family.name != families.TRANSFORMERS
    network = blank_network(family, config) if ours else family.network_class.blank(weights.path, config)
    described = sum(tensor.numel() for tensor in network.parameters())
    size = sum(file.stat().st_size for file in weights.files)
    packed = 8 if getattr(config, "quantization_config", None) else 1  # parameters per byte
    if described > packed * size + _SLACK:
        raise CheckpointError(
            f"{weights.path / 'config.json'}: describes a network of {described:,} numbers, but the files of weights "
            f"have {size:,} bytes"
        )


def expected_shapes(family: type[Family], config: PretrainedConfig) -> Shapes:
    """The shapes of our network's tensors, without the names that are tied to others."""
    return dict(_shapes(family, config.to_json_string()))


@functools.lru_cache(maxsize=8)
def _shapes(family: type[Family], config: str) -> Shapes:
    """Kept, for a deep network takes a tenth of a second to build, even without its weights."""
    network = blank_network(family, family.config_class.from_dict(json.loads(config)))
    tied = network.all_tied_weights_keys
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name not in tied}


def absent_tensors(original: Original, config: PretrainedConfig) -> list[str]:
    """Our tensors for which the files have nothing: optional ones."""
    found = original.shapes
    return [name for name in expected_shapes(original.family, config) if name not in found]


def _differences(original: Original, config: PretrainedConfig) -> list[str]:
    """What of the files does not fit a configuration, as text; optional tensors may be absent."""
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


def _same(released: dict[str, Any], settled: PretrainedConfig) -> bool:
    """Whether a configuration is a released size's; the vocabulary and what only training uses do not decide."""
    free = ("vocab_size", "initializer_range")
    return all(
        getattr(settled, key) == value for key, value in released.items() if key not in free and "drop" not in key
    )


def _ask(original: Original, candidates: list[str]) -> str:
    where = f"{original.weights.path} ({original.family.name})"
    if candidates:
        return (
            f"{where}: the shapes are those of {' and '.join(candidates)}, which compute differently; "
            f"say which it is: --size {' or --size '.join(candidates)}"
        )
    shape = next(iter(original.shapes.values()))
    unsaid = sorted(_deciding_keys(original) - _dimensions(original).keys())
    lack = f", and its shapes do not say {', '.join(unsaid)}" if _dimensions(original) else ""
    return (
        f"{where}: has no config.json and is of no released size (its embedding is {shape}){lack}; "
        f"give the original's configuration file: --config FILE (released: {', '.join(original.family.original_format.SIZES)})"
    )
