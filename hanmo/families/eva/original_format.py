"""EVA's original files: released sizes, tensor names of both on-disk forms, configuration keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hanmo.errors import CheckpointError
from hanmo.families.original_tables import read_format

SIZES, _LAYOUTS = read_format(Path(__file__).with_suffix(".yaml"))
LAYOUTS = tuple(_LAYOUTS.values())

# The original's values where its configuration file does not name a key.
_ABSENT = {
    "d_model": 768,
    "d_ff": 256,
    "d_kv": 64,
    "num_heads": 12,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "attn_scale": False,
    "relative_attention_num_buckets": 32,
}
_COUNTS = (
    *("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "num_decoder_layers", "relative_attention_num_buckets"),
    "vocab_size",
)
_RENAMED = {"init_method_std": "initializer_range"}
_KEPT = ("vocab_size", "pad_token_id", "eos_token_id", "decoder_start_token_id")


def read_config(original: Mapping[str, Any]) -> dict[str, Any]:
    """An original ``model_config.json`` or hub ``config.json`` as keyword arguments of ``EvaConfig``.

    Keys that the original ignores (``feed_forward_proj`` and the like) are ignored here too. The vocabulary size is
    the vocabulary file's where the configuration does not name it.

    Raises:
        CheckpointError: a size is not a positive whole number.
    """
    config = {key: original.get(key, default) for key, default in _ABSENT.items()}
    if config["num_decoder_layers"] is None:
        config["num_decoder_layers"] = config["num_layers"]
    config |= {ours: original[theirs] for theirs, ours in _RENAMED.items() if theirs in original}
    config |= {key: original[key] for key in _KEPT if original.get(key) is not None}
    for key in _COUNTS:
        value = config.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"EVA configuration: {key} is {value!r}; expected a whole number above 0")
    if not isinstance(config["attn_scale"], bool):
        raise CheckpointError(f"EVA configuration: attn_scale is {config['attn_scale']!r}; expected true or false")
    return config
