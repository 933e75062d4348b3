"""文汇's original files as data: sizes, tensor names of both variants, and what the tensors say about the sizes.

Source: the recorded specification of the original, sections 1, 2 and 12. Its files hold no configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hanmo.errors import CheckpointError, ConfigError, unknown
from hanmo.families.transformer_xl.modeling import TransformerXLConfig
from hanmo.families.weight_map import Layout, Size, TensorMapping


def parameters(config: Mapping[str, Any]) -> int:
    """The number of weights of our network of this configuration; the inverse frequencies are no weights."""
    width, layers = config["hidden_size"], config["num_layers"]
    if config["relative"]:
        return (config["vocab_size"] + 2 + 2) * width + layers * (13 * width + 14) * width
    places = config["max_position_embeddings"]
    return (config["vocab_size"] + places + 2) * width + layers * (12 * width + 13) * width


def _size(width: int, layers: int, heads: int, relative: bool, memory: int, *aliases: str) -> Size:
    config = {
        "vocab_size": 50048,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "relative": relative,
        "max_position_embeddings": 512,
        "segment_length": 512,
        "memory_length": memory,
    }
    return Size(config, parameters(config), aliases)


SIZES = {
    "txl-2.9b": _size(
        2560, 32, 32, True, 256, "wenhui-2.9b", "wenhui", "transformer-xl-2.9b", "chinese-transformer-xl"
    ),
    "txl-small": _size(1024, 24, 16, False, 0, "wenhui-small", "transformer-xl-small"),
}


def _module(theirs: str, ours: Sequence[str], cut: int | None = None, cut_bias: bool = False) -> list[TensorMapping]:
    """Weight and bias of one module of every layer."""
    theirs = "transformer.layers.{i}." + theirs
    return [
        TensorMapping(
            f"{theirs}.{kind}", tuple(f"layers.{{i}}.{name}.{kind}" for name in ours), place, over="num_layers"
        )
        for kind, place in (("weight", cut), ("bias", 0 if cut_bias else None))
    ]


_WORDS = TensorMapping("word_embeddings.weight", ("embed_tokens.weight",), 0, vocabulary=128)
_LAYERS = (
    *_module("input_layernorm", ["attention_norm"]),
    *_module(
        "attention.query_key_value",
        ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        cut=0,
        cut_bias=True,
    ),
    *_module("attention.dense", ["attention.o_proj"], cut=1),
    *_module("post_attention_layernorm", ["mlp_norm"]),
    *_module("mlp.dense_h_to_4h", ["up_proj"], cut=0, cut_bias=True),
    *_module("mlp.dense_4h_to_h", ["down_proj"], cut=1),
    TensorMapping("transformer.final_layernorm.weight", ("final_norm.weight",)),
    TensorMapping("transformer.final_layernorm.bias", ("final_norm.bias",)),
)

RELATIVE = Layout(
    name="transformer-xl-megatron",
    container="megatron",
    entries=(
        _WORDS,
        TensorMapping("transformer.r_w_bias", ("r_w_bias",), 0),
        TensorMapping("transformer.r_r_bias", ("r_r_bias",), 0),
        TensorMapping("transformer.position_embeddings.inv_freq", ("positions.inv_freq",)),
        *_module("attention.relative", ["attention.r_proj"], cut=0, cut_bias=True),
        *_LAYERS,
    ),
    signature=("word_embeddings.weight", "transformer.r_w_bias", "transformer.layers.0.attention.relative.weight"),
    in_half={"half_positions": True},  # the weights were trained so
)
ABSOLUTE = Layout(
    name="transformer-xl-absolute-megatron",
    container="megatron",
    entries=(_WORDS, TensorMapping("transformer.position_embeddings.weight", ("embed_positions.weight",)), *_LAYERS),
    signature=(
        "word_embeddings.weight",
        "transformer.position_embeddings.weight",
        "transformer.layers.0.attention.query_key_value.weight",
    ),
)
LAYOUTS = (RELATIVE, ABSOLUTE)


def dimensions(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What the shapes of an original checkpoint's whole (merged) tensors say about the configuration.

    The absolute variant does not say ``num_heads``. Memory goes with relative positions.

    Raises:
        CheckpointError: a tensor that every checkpoint of this family has is missing or no matrix.
    """

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
    """A configuration file: the original has none, so it is one of ours, or the keys that the tensors leave open.

    Raises:
        ConfigError: an unknown key.
    """
    known = {item.name for item in fields(TransformerXLConfig)}
    for key in original.keys() - known - {"model_type", "transformers_version"}:
        raise ConfigError(unknown("configuration key", key, known))
    return {key: value for key, value in original.items() if key in known}
