"""GLM-chinese as it was released: sizes and the names of its tensors. Data, not code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hanmo.families.weight_map import Layout, Size, TensorMapping

_LAYER = "layers.{i}."

SIZES = {
    "glm-335m-chinese": Size(
        {"hidden_size": 1024, "num_layers": 24, "num_attention_heads": 16},
        355_659_776,
        ("glm-335m", "glm-350m-chinese", "glm-350m", "blocklm-large-chinese", "glm-large-chinese"),
    ),
    "glm-10b-chinese": Size(
        # The original 10B shares [gMASK]'s id with the end of an answer.
        {"hidden_size": 4096, "num_layers": 48, "num_attention_heads": 64, "mask_token_ids": (50003, 50008, 50007)},
        9_879_633_920,
        ("glm-10b", "blocklm-10b-chinese"),
    ),
}


def _module(
    theirs: str, *ours: str, cut: int | None = None, cut_bias: bool = False
) -> tuple[TensorMapping, TensorMapping]:
    """Weight and bias of one module of every layer."""
    weights = tuple(f"{_LAYER}{name}.weight" for name in ours)
    biases = tuple(f"{_LAYER}{name}.bias" for name in ours)
    theirs = "transformer.layers.{i}." + theirs
    return (
        TensorMapping(f"{theirs}.weight", weights, cut, over="num_layers"),
        TensorMapping(f"{theirs}.bias", biases, 0 if cut_bias else None, over="num_layers"),
    )


_ENTRIES = (
    TensorMapping("word_embeddings.weight", ("embed_tokens.weight",), 0, vocabulary=128),
    TensorMapping("transformer.position_embeddings.weight", ("embed_positions.weight",)),
    TensorMapping("transformer.block_position_embeddings.weight", ("embed_places.weight",), optional=True),
    *_module("input_layernorm", "attention_norm"),
    *_module(
        "attention.query_key_value",
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        cut=0,
        cut_bias=True,
    ),
    *_module("attention.dense", "attention.o_proj", cut=1),
    *_module("post_attention_layernorm", "mlp_norm"),
    *_module("mlp.dense_h_to_4h", "up_proj", cut=0, cut_bias=True),
    *_module("mlp.dense_4h_to_h", "down_proj", cut=1),
    TensorMapping("transformer.final_layernorm.weight", ("final_norm.weight",)),
    TensorMapping("transformer.final_layernorm.bias", ("final_norm.bias",)),
)
_SIGNATURE = ("transformer.position_embeddings.weight", "transformer.layers.0.attention.query_key_value.weight")

HF_BIN = Layout(name="glm-bin", container="bin", entries=_ENTRIES, signature=_SIGNATURE, prefixes=("", "glm."))
MEGATRON = Layout(
    name="glm-megatron",
    container="megatron",
    entries=_ENTRIES,
    # Transformer-XL with absolute positions has all the other names too.
    signature=(*_SIGNATURE, "transformer.block_position_embeddings.weight"),
)
# The published reward models: a value head on the last block's output before the final norm.
REWARD_BIN = replace(
    HF_BIN,
    name="glm-reward-bin",
    entries=(
        *(replace(entry, theirs=f"transformer.{entry.theirs}") for entry in _ENTRIES),
        TensorMapping("v_head.weight", ("value_head.output.weight",)),
    ),
    signature=(*(f"transformer.{name}" for name in _SIGNATURE), "v_head.weight"),
    prefixes=("",),
    implies={"value_head": "linear"},
)
LAYOUTS = (HF_BIN, MEGATRON, REWARD_BIN)

_KEYS = [
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "max_sequence_length",
    "block_position_encoding",
    "embedding_dropout_prob",
    "attention_dropout_prob",
    "output_dropout_prob",
    "initializer_range",
    "pad_token_id",
]


def read_config(original: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of GlmConfig from the original's config.json.

    ``attention_scale`` only reorders the arithmetic of half precision and is not needed.
    """
    return {key: original[key] for key in _KEYS if key in original}
