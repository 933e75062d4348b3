"""GLM-chinese as it was released: sizes, the names of its tensors, and its configuration keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hanmo.families.original_tables import read_format
from hanmo.families.weight_map import TensorMapping

SIZES, _LAYOUTS = read_format(Path(__file__).with_suffix(".yaml"))
HF_BIN, MEGATRON = _LAYOUTS.values()
# The published reward models: a value head on the last block's output before the final norm.
REWARD_BIN = replace(
    HF_BIN,
    name="glm-reward-bin",
    entries=(
        *(replace(entry, theirs=f"transformer.{entry.theirs}") for entry in HF_BIN.entries),
        TensorMapping("v_head.weight", ("value_head.output.weight",)),
    ),
    signature=(*(f"transformer.{name}" for name in HF_BIN.signature), "v_head.weight"),
    prefixes=("",),
    implies={"value_head": "linear"},
)
LAYOUTS = (HF_BIN, MEGATRON, REWARD_BIN)

_KEYS = (
    *("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "max_sequence_length", "initializer_range"),
    *(
        "embedding_dropout_prob",
        "attention_dropout_prob",
        "output_dropout_prob",
        "block_position_encoding",
        "pad_token_id",
    ),
)


def read_config(original: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of GlmConfig from the original's config.json.

    ``attention_scale`` only reorders the arithmetic of half precision and is not needed.
    """
    return {key: original[key] for key in _KEYS if key in original}
