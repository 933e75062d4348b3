"""The recorded EVA models, opened from their original files, and the network under the original's inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hanmo.checkpoints import open_model
from hanmo.families.eva import original_format
from hanmo.families.eva.biases import masked_bias
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.weight_map import TensorMapping, expand
from tests.places import PARITY, load
from tests.ranks import RANKS

EVA = PARITY / "eva"
MODELS = load(EVA / "models.json", {})
LAYOUTS = {layout.name: layout for layout in original_format.LAYOUTS}


def network(name: str, layout: str = "megatron", dtype: str = "fp32") -> EvaModel:
    """The network of a recorded model in evaluation mode, on the CPU, from one of its two on-disk forms."""
    model, path = MODELS[name], EVA / MODELS[name]["checkpoint"]
    if layout == "hub":
        return open_model(path.with_name(f"{path.name}_hub"), dtype=dtype, device="cpu", tensor_parallel=RANKS).network
    return open_model(
        path, config=EVA / model["config"], vocab=EVA / model["vocab"], dtype=dtype, device="cpu", tensor_parallel=RANKS
    ).network


def entries(config: EvaConfig, layout: str) -> list[TensorMapping]:
    """The name table of one on-disk form for a network's depth."""
    return expand(LAYOUTS[layout].entries, config)


def original_logits(
    model: EvaModel,
    input_ids: Tensor,
    decoder_input_ids: Tensor,
    attention_mask: Tensor,
    cross_attention_mask: Tensor,
    decoder_attention_mask: Tensor | None = None,
    role_ids: Tensor | None = None,
    decoder_role_ids: Tensor | None = None,
) -> Tensor:
    """Logits (B, A, V) under the original's masks, one per query (B, q, k) or (B, 1, q, k), and its role embeddings.

    A query that sees no key scores 0 for every key, as in the original, and attends by the position bias alone.
    """
    if decoder_attention_mask is None:
        decoder_attention_mask = torch.ones(1, *2 * decoder_input_ids.shape[1:]).tril()
    encoder_mask, decoder_mask, cross_mask = (
        (mask if mask.dim() == 4 else mask[:, None]).bool()
        for mask in (attention_mask, decoder_attention_mask, cross_attention_mask)
    )

    def embedded(ids: Tensor, roles: Tensor | None) -> Tensor:
        return model.word_embeds(ids) + (0 if roles is None else model.role_embeds(roles))

    def position_bias(stack: nn.Module, mask: Tensor) -> Tensor:
        positions = torch.arange(mask.shape[-1])[None]
        return masked_bias(stack.position_bias(positions, positions), mask)

    def zero_blind(mask: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _module, _inputs, queries: queries.masked_fill(~mask[:, 0].any(-1, keepdim=True), 0)

    attentions = [(block.attn, encoder_mask) for block in model.encoder.blocks]
    attentions += [(block.attn, decoder_mask) for block in model.decoder.blocks]
    attentions += [(block.cross, cross_mask) for block in model.decoder.blocks]
    hooks = [attention.q_proj.register_forward_hook(zero_blind(mask)) for attention, mask in attentions]
    encoded = model.encoder(embedded(input_ids, role_ids), position_bias(model.encoder, encoder_mask))
    cross_bias = masked_bias(encoded.new_zeros(1, 1, 1, 1), cross_mask)
    decoder_inputs = embedded(decoder_input_ids, decoder_role_ids)
    decoded = model.decoder(decoder_inputs, position_bias(model.decoder, decoder_mask), encoded, cross_bias)
    for hook in hooks:
        hook.remove()
    return model.lm_head(decoded)
