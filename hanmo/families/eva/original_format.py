"""EVA's original files as data: released sizes, tensor names of both on-disk forms, configuration keys.

Source: the recorded specification of thu-coai/EVA, sections 2 to 5 and 13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hanmo.errors import CheckpointError
from hanmo.families.weight_map import Layout, Size, TensorMapping


def parameters(config: Mapping[str, Any]) -> int:
    """The number of weights of our network of this configuration, role embeddings included."""
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    attention, norm = 4 * width * inner, width
    feed_forward = 3 * width * config["d_ff"]
    encoder = config["num_layers"] * (attention + feed_forward + 2 * norm)
    decoder = config["num_decoder_layers"] * (2 * attention + feed_forward + 3 * norm)
    embeddings = (2 * config["vocab_size"] + 2) * width
    return embeddings + encoder + decoder + 2 * (norm + config["relative_attention_num_buckets"] * config["num_heads"])


def _size(width: int, inner_width: int, heads: int, layers: int, attn_scale: bool, *aliases: str) -> Size:
    config = {
        "vocab_size": 30000,
        "d_model": width,
        "d_ff": inner_width,
        "d_kv": 64,
        "num_heads": heads,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "dropout_rate": 0.0,
        "layer_norm_epsilon": 1e-6,
        "attn_scale": attn_scale,
        "relative_attention_num_buckets": 32,
        "initializer_range": 0.001,
    }
    return Size(config, parameters(config), aliases)


SIZES = {
    "eva1.0": _size(2048, 5120, 32, 24, False, "eva", "eva1.0-xlarge"),
    "eva2.0-base": _size(768, 3072, 12, 12, True, "eva2.0_base"),
    "eva2.0-large": _size(1024, 4096, 16, 24, True, "eva2.0_large"),
    "eva2.0-xlarge": _size(2048, 5120, 32, 24, True, "eva2.0", "eva2.0_xlarge"),
}

_STACKS = (("encoder", "num_layers"), ("decoder", "num_decoder_layers"))


def _megatron() -> list[TensorMapping]:
    """Names of the original training code; ``cut`` is how its conversion script splits a tensor over ranks."""

    def shared(name: str, cut: int | None, vocabulary: int = 0, optional: bool = False) -> TensorMapping:
        return TensorMapping(name, (name,), cut, vocabulary, (f"encoder.{name}", f"decoder.{name}"), optional)

    entries = [
        shared("word_embeds.weight", 0, vocabulary=1),
        shared("role_embeds.weight", None, optional=True),
        TensorMapping("lm_head.weight", ("lm_head.weight",), 0, vocabulary=1),
    ]
    for stack, layers in _STACKS:
        block = f"{stack}.blocks.{{i}}"

        def attention(theirs: str, ours: str, fused: dict[str, str], block: str = block, layers: str = layers) -> None:
            for name, parts in fused.items():
                projections = tuple(f"{block}.{ours}.{part}_proj.weight" for part in parts)
                entries.append(TensorMapping(f"{block}.{theirs}.{theirs}.{name}.weight", projections, 0, over=layers))
            dense = f"{block}.{theirs}.{theirs}.dense.weight"
            entries.append(TensorMapping(dense, (f"{block}.{ours}.o_proj.weight",), 1, over=layers))
            norm = f"{block}.{theirs}.layer_norm.weight"
            entries.append(TensorMapping(norm, (f"{block}.{ours}_norm.weight",), over=layers))

        attention("self_attn", "attn", {"project": "qkv"})
        if stack == "decoder":
            attention("cross_attn", "cross", {"project_q": "q", "project_kv": "kv"})
        for name, cut in (("wi_0", 0), ("wi_1", 0), ("wo", 1)):
            theirs = f"{block}.ff.dense_relu_dense.{name}.weight"
            entries.append(TensorMapping(theirs, (f"{block}.ff.{name}.weight",), cut, over=layers))
        entries.append(TensorMapping(f"{block}.ff.layer_norm.weight", (f"{block}.ff_norm.weight",), over=layers))
        bias = f"{stack}.blocks.0.self_attn.self_attn.relative_attention_bias.weight"
        entries.append(TensorMapping(bias, (f"{stack}.relative_bias.weight",), 1))
        entries.append(TensorMapping(f"{stack}.final_layernorm.weight", (f"{stack}.final_norm.weight",)))
    return entries


def _hub() -> list[TensorMapping]:
    """Names of the authors' hub folders, which are those of T5; the attention scale is not folded into them."""
    entries = [
        TensorMapping(
            "shared.weight",
            ("word_embeds.weight",),
            copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        ),
        TensorMapping("role_embeds.weight", ("role_embeds.weight",), optional=True),
        TensorMapping("lm_head.weight", ("lm_head.weight",)),
    ]
    for stack, layers in _STACKS:
        attentions = [("SelfAttention", "attn")] + [("EncDecAttention", "cross")] * (stack == "decoder")
        pairs = []
        for place, (theirs, ours) in enumerate(attentions):
            pairs += [(f"{place}.{theirs}.{part}", f"{ours}.{part}_proj") for part in "qkvo"]
            pairs.append((f"{place}.layer_norm", f"{ours}_norm"))
        place = len(attentions)
        pairs += [(f"{place}.DenseReluDense.{name}", f"ff.{name}") for name in ("wi_0", "wi_1", "wo")]
        pairs.append((f"{place}.layer_norm", "ff_norm"))
        entries += [
            TensorMapping(
                f"{stack}.block.{{i}}.layer.{theirs}.weight", (f"{stack}.blocks.{{i}}.{ours}.weight",), over=layers
            )
            for theirs, ours in pairs
        ]
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        entries.append(TensorMapping(bias, (f"{stack}.relative_bias.weight",)))
        entries.append(TensorMapping(f"{stack}.final_layer_norm.weight", (f"{stack}.final_norm.weight",)))
    return entries


LAYOUTS = (
    Layout(
        "megatron",
        "megatron",
        tuple(_megatron()),
        signature=("word_embeds.weight", "encoder.blocks.0.self_attn.self_attn.project.weight"),
    ),
    Layout(
        "hub",
        "bin",
        tuple(_hub()),
        signature=("shared.weight", "decoder.block.0.layer.1.EncDecAttention.q.weight"),
        needs=("attn_scale",),  # T5 v1.1 and mT5 have the very same names
    ),
)

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
    "d_model",
    "d_ff",
    "d_kv",
    "num_heads",
    "num_layers",
    "num_decoder_layers",
    "relative_attention_num_buckets",
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
