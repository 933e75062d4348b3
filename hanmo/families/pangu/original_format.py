"""PanGu-α as it was released: sizes, the names of its tensors, and its configuration keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hanmo.families.original_tables import read_format
from hanmo.families.weight_map import TensorMapping

SIZES, _LAYOUTS = read_format(Path(__file__).with_suffix(".yaml"))
HF_BIN, MEGATRON = _LAYOUTS.values()
# The published reward models: no output head, and a value head on the query layer's output.
REWARD_BIN = replace(
    HF_BIN,
    name="pangu-reward-bin",
    entries=(
        *(replace(entry, copies=()) for entry in HF_BIN.entries),
        TensorMapping("v_head.weight", ("value_head.output.weight",)),
    ),
    signature=(*HF_BIN.signature, "v_head.weight"),
    implies={"value_head": "linear"},
)
LAYOUTS = (HF_BIN, REWARD_BIN, MEGATRON)

_KEYS = (
    *("vocab_size", "hidden_size", "num_layers", "num_heads", "max_position_embeddings", "intermediate_size"),
    *("activation_function", "layer_norm_epsilon", "embd_pdrop", "attn_pdrop", "resid_pdrop", "initializer_range"),
    "pad_token_id",
)


def read_config(original: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of PanguConfig from the original's config.json."""
    return {key: original[key] for key in _KEYS if key in original}
