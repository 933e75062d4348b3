"""EVA's original files: released sizes, tensor names of both on-disk forms, configuration keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hanmo.errors import CheckpointError
from hanmo.families.weight_map import read_format

SIZES, _LAYOUTS, _DEFAULTS = read_format(Path(__file__).with_suffix(".yaml"))
LAYOUTS = tuple(_LAYOUTS.values())

_COUNTS = (*(key for key, value in _DEFAULTS.items() if type(value) is int), "vocab_size")
_KEPT = ("vocab_size", "pad_token_id", "eos_token_id", "decoder_start_token_id")


def read_config(original: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``EvaConfig``, without the keys that the original ignores; CheckpointError for bad values."""
    config = {key: original.get(key, default) for key, default in _DEFAULTS.items()}
    if config["num_decoder_layers"] is None:
        config["num_decoder_layers"] = config["num_layers"]
    if "init_method_std" in original:
        config["initializer_range"] = original["init_method_std"]
    config |= {key: original[key] for key in _KEPT if original.get(key) is not None}
    for key in _COUNTS:
        value = config.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"EVA configuration: {key} is {value!r}; expected a whole number above 0")
    if not isinstance(config["attn_scale"], bool):
        raise CheckpointError(f"EVA configuration: attn_scale is {config['attn_scale']!r}; expected true or false")
    return config
