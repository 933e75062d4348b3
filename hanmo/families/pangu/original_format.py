"""PanGu-α as it was released: sizes and the names of its tensors. Data, not code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hanmo.families.weight_map import Layout, Size, TensorMapping

_LAYER = "layers.{i}."


def _size(width: int, layers: int, heads: int, vocabulary: int, parameters: int, *aliases: str) -> Size:
    config = {"hidden_size": width, "num_layers": layers, "num_heads": heads, "vocab_size": vocabulary}
    return Size(config, parameters, aliases)


SIZES = {
    "pangu-350m": _size(1024, 24, 16, 40000, 345_368_576, "PanGu-350M"),
    "pangu-2.6b": _size(2560, 32, 32, 40000, 2_625_295_360, "PanGu-2.6B"),
    "pangu-13b": _size(5120, 40, 40, 40064, 12_801_198_080, "PanGu-13B"),
}


def _both(theirs: str, ours: str, cut: int | None, cut_bias: bool = False) -> tuple[TensorMapping, TensorMapping]:
    """Weight and bias of one module of every block."""
    bias_cut = 0 if cut_bias else None
    return (
        TensorMapping(f"{theirs}.weight", (f"{_LAYER}{ours}.weight",), cut, over="num_layers"),
        TensorMapping(f"{theirs}.bias", (f"{_LAYER}{ours}.bias",), bias_cut, over="num_layers"),
    )


HF_BIN = Layout(
    name="pangu-bin",
    container="bin",
    entries=(
        TensorMapping("transformer.wte.weight", ("embed_tokens.weight",), 0, copies=("lm_head.weight",)),
        TensorMapping("transformer.wpe.weight", ("embed_positions.weight",)),
        TensorMapping("transformer.wqe.weight", ("embed_queries.weight",)),
        *_both("transformer.h.{i}.ln_1", "attention_norm", None),
        *_both("transformer.h.{i}.attn.q_proj", "attention.q_proj", 0, cut_bias=True),
        *_both("transformer.h.{i}.attn.k_proj", "attention.k_proj", 0, cut_bias=True),
        *_both("transformer.h.{i}.attn.v_proj", "attention.v_proj", 0, cut_bias=True),
        *_both("transformer.h.{i}.attn.c_proj", "attention.o_proj", 1),
        *_both("transformer.h.{i}.ln_2", "mlp_norm", None),
        *_both("transformer.h.{i}.mlp.c_fc", "up_proj", 0, cut_bias=True),
        *_both("transformer.h.{i}.mlp.c_proj", "down_proj", 1),
        TensorMapping("transformer.ln_f.weight", ("final_norm.weight",)),
        TensorMapping("transformer.ln_f.bias", ("final_norm.bias",)),
    ),
    signature=("transformer.wqe.weight", "transformer.h.0.attn.q_proj.weight"),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
)
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


def _megatron(theirs: str, ours: str, cut: int | None, cut_bias: bool = False) -> list[TensorMapping]:
    """Weight and bias of one module of every block; the query layer is the last, under a name of its own."""
    blocks = _both(f"transformer.layers.{{i}}.{theirs}", ours, cut, cut_bias)
    query_layer = _both(f"transformer.topQueryLayer.{theirs}", ours, cut, cut_bias)
    return [replace(entry, only="others") for entry in blocks] + [replace(entry, only="last") for entry in query_layer]


# The Megatron port's training files.
MEGATRON = Layout(
    name="pangu-megatron",
    container="megatron-lm",
    entries=(
        TensorMapping("embedding.word_embeddings.weight", ("embed_tokens.weight",), 0, vocabulary=128),
        TensorMapping("embedding.position_embeddings.weight", ("embed_positions.weight",)),
        TensorMapping("topQueryEmbedding.top_query_embeddings.weight", ("embed_queries.weight",)),
        *_megatron("input_layernorm", "attention_norm", None),
        *_megatron("attention.query", "attention.q_proj", 0, cut_bias=True),
        *_megatron("attention.key", "attention.k_proj", 0, cut_bias=True),
        *_megatron("attention.value", "attention.v_proj", 0, cut_bias=True),
        *_megatron("attention.dense", "attention.o_proj", 1),
        *_megatron("post_attention_layernorm", "mlp_norm", None),
        *_megatron("mlp.dense_h_to_4h", "up_proj", 0, cut_bias=True),
        *_megatron("mlp.dense_4h_to_h", "down_proj", 1),
        TensorMapping("transformer.final_layernorm.weight", ("final_norm.weight",)),
        TensorMapping("transformer.final_layernorm.bias", ("final_norm.bias",)),
    ),
    signature=(
        "topQueryEmbedding.top_query_embeddings.weight",
        "transformer.topQueryLayer.attention.query.weight",
    ),
    nests=(
        "embedding.word_embeddings",
        "embedding.position_embeddings",
        "topQueryEmbedding.top_query_embeddings",
        "transformer",
    ),
)
LAYOUTS = (HF_BIN, REWARD_BIN, MEGATRON)

_KEYS = [
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "max_position_embeddings",
    "intermediate_size",
    "activation_function",
    "layer_norm_epsilon",
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
    "initializer_range",
    "pad_token_id",
]


def read_config(original: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of PanguConfig from the original's config.json."""
    return {key: original[key] for key in _KEYS if key in original}
