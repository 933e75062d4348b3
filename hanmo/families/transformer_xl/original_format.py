"""文汇's original files, which hold no configuration: sizes, tensor names, and settings that shapes imply."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hanmo.errors import CheckpointError, ConfigError, unknown
from hanmo.families.transformer_xl.modeling import TransformerXLConfig
from hanmo.families.weight_map import read_format

SIZES, _LAYOUTS, _ = read_format(Path(__file__).with_suffix(".yaml"))
RELATIVE, ABSOLUTE = LAYOUTS = tuple(_LAYOUTS.values())


def dimensions(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The settings that shapes of whole (merged) tensors imply; CheckpointError if one is missing or not a matrix."""

    def shape(name: str) -> Sequence[int]:
        if len(shapes.get(name, ())) != 2:
            raise CheckpointError(f"Transformer-XL checkpoint: tensor {name} is missing or has not two dimensions")
        return shapes[name]

    vocab_size, width = shape("word_embeddings.weight")
    relative = "transformer.r_w_bias" in shapes
    found: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_layers": sum(name.endswith("attention.query_key_value.weight") for name in shapes),
        "relative": relative,
        "memory_length": 256 if relative else 0,
    }
    if relative:
        return found | {"num_heads": shape("transformer.r_w_bias")[0]}
    return found | {"max_position_embeddings": shape("transformer.position_embeddings.weight")[0]}


def read_config(original: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments from a configuration of ours, or the keys that tensors leave open; ConfigError: an unknown key."""
    known = {item.name for item in fields(TransformerXLConfig)}
    for key in original.keys() - known - {"model_type", "transformers_version"}:
        raise ConfigError(unknown("configuration key", key, known))
    return {key: value for key, value in original.items() if key in known}
