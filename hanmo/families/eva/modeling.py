"""EVA's network: an encoder-decoder in the form of T5 v1.1.

Pre-norm blocks without biases, root-mean-square norms, gated tanh-GELU, a relative position bias per stack, a head
of its own. EVA 2.0 divides the attention scores by sqrt(d_kv), EVA 1.0 does not; nothing else differs.

Shape suffixes: T encoder tokens, A decoder tokens, K d_kv, q queries, k keys; in decoding S sources, C columns.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from hanmo.families.eva.biases import masked_bias, relative_buckets
from hanmo.families.eva.state import EvaState
from hanmo.nn.causal import same_example
from hanmo.nn.cpu.layers import Dropout, Linear, dropout, lowered
from hanmo.nn.decode_state import DecodeState, attend
from hanmo.nn.row_model import RowModel
from hanmo.nn.tensor_parallel import AS_CUT, IN_HEADS, OUT_HEADS, VOCABULARY_ROWS, WHOLE_LOGITS

_ATTENTION = {"q_proj": OUT_HEADS, "k_proj": OUT_HEADS, "v_proj": OUT_HEADS, "o_proj": IN_HEADS}
_ENCODER = {"attn": _ATTENTION, "ff": {"wi_0": OUT_HEADS, "wi_1": OUT_HEADS, "wo": IN_HEADS}}
_DECODER = {**_ENCODER, "cross": _ATTENTION}
TP_PLAN = {"word_embeds": VOCABULARY_ROWS, "lm_head": WHOLE_LOGITS}
for _stack, _parts in (("encoder", _ENCODER), ("decoder", _DECODER)):
    TP_PLAN |= {f"{_stack}.blocks.*.{part}.{name}": cut for part in _parts for name, cut in _parts[part].items()}
    TP_PLAN |= {f"{_stack}.relative_bias": AS_CUT, f"{_stack}.relative_bias.weight": IN_HEADS}  # a column for each head


class EvaConfig(PretrainedConfig):
    """Configuration of an EVA network; the defaults are those of EVA 2.0 base."""

    model_type = "hanmo-eva"
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    vocab_size: int = 30000
    d_model: int = 768
    d_ff: int = 3072
    d_kv: int = 64
    num_heads: int = 12
    num_layers: int = 12
    num_decoder_layers: int | None = None  # as many as num_layers
    dropout_rate: float | int = 0.0
    layer_norm_epsilon: float = 1e-6
    attn_scale: bool = True  # divide attention scores by sqrt(d_kv): true for EVA 2.0, false for 1.0
    relative_attention_num_buckets: int = 32
    initializer_range: float = 0.001  # standard deviation of fresh projections and of the head
    pad_token_id: int | None = 5
    eos_token_id: int | list[int] | None = 4
    decoder_start_token_id: int | None = 29810
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs) -> None:
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        super().__post_init__(**kwargs)


class EvaNorm(nn.Module):
    """Root-mean-square norm without bias; the mean of squares is fp32."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return _Normalised.apply(hidden, self.weight, self.epsilon)


class _Normalised(torch.autograd.Function):
    """A norm that keeps only its input for the backward pass; autograd would keep four tensors of its size."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = torch.rsqrt(hidden.float().square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, weight, inverse)
        return weight * (hidden * inverse).to(weight.dtype)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, inverse = ctx.saved_tensors
        normal = hidden * inverse
        for_weight = (gradients[0] * normal).flatten(0, -2).sum(0)
        for_normal = gradients[0] * weight
        for_hidden = inverse * (for_normal - normal * (for_normal * normal).mean(-1, keepdim=True))
        return for_hidden.to(hidden.dtype), for_weight.to(weight.dtype), None


class EvaAttention(nn.Module):
    """Multi-head attention to keys and values that the caller computes and may keep."""

    def __init__(self, config: EvaConfig):
        super().__init__()
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.q_proj, self.k_proj = Linear(width, inner, bias=False), Linear(width, inner, bias=False)
        self.v_proj, self.o_proj = Linear(width, inner, bias=False), Linear(inner, width, bias=False)
        self.d_kv = config.d_kv
        self.scale = config.d_kv**-0.5 if config.attn_scale else 1.0
        self.dropout_rate = config.dropout_rate

    def keys_values(self, source_BkD: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.k_proj(source_BkD)), self._heads(self.v_proj(source_BkD))

    def forward(
        self, hidden_BqD: Tensor, key_BHkK: Tensor, value_BHkK: Tensor, bias_BHqk: Tensor, own: list[int] | None = None
    ) -> Tensor:
        query_BHqK = self._heads(self.q_proj(hidden_BqD))
        attention_dropout = self.dropout_rate if self.training else 0.0
        bias_BHqk = bias_BHqk.to(query_BHqK.dtype)
        mixed_BHqK = attend(
            query_BHqK, key_BHkK, value_BHkK, bias_BHqk, own, dropout_p=attention_dropout, scale=self.scale
        )
        output_BqD = self.o_proj(mixed_BHqK.transpose(1, 2).flatten(2))
        return dropout(output_BqD, self.dropout_rate, self.training)

    def _heads(self, projected_BTI: Tensor) -> Tensor:
        return projected_BTI.unflatten(-1, (-1, self.d_kv)).transpose(1, 2)


class EvaFeedForward(nn.Module):
    def __init__(self, config: EvaConfig):
        super().__init__()
        self.wi_0 = Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = Linear(config.d_model, config.d_ff, bias=False)
        self.wo = Linear(config.d_ff, config.d_model, bias=False)
        self.dropout_rate = config.dropout_rate

    def forward(self, hidden: Tensor) -> Tensor:
        gated = F.gelu(self.wi_0(hidden), approximate="tanh") * self.wi_1(hidden)
        return self.wo(dropout(gated, self.dropout_rate, self.training))


class EvaBlock(GradientCheckpointingLayer):
    """Self-attention, cross-attention (decoder only) and feed-forward, each after its norm.

    Inputs with gradients are positional arguments: checkpointing loses the gradients of keyword arguments.
    """

    def __init__(self, config: EvaConfig, decoder: bool):
        super().__init__()
        self.attn_norm = EvaNorm(config.d_model, config.layer_norm_epsilon)
        self.attn = EvaAttention(config)
        if decoder:
            self.cross_norm = EvaNorm(config.d_model, config.layer_norm_epsilon)
            self.cross = EvaAttention(config)
        self.ff_norm = EvaNorm(config.d_model, config.layer_norm_epsilon)
        self.ff = EvaFeedForward(config)
        self.decoder = decoder
        self.dropout = Dropout(config.dropout_rate)

    def forward(
        self,
        hidden_BqD: Tensor,
        bias_BHqk: Tensor,
        encoded_BTD: Tensor | None = None,
        cross_bias_BHqT: Tensor | None = None,
        state: EvaState | None = None,
        layer: int = 0,
    ) -> Tensor:
        normal_BqD = lowered(self.attn_norm(hidden_BqD))
        keys, values = self.attn.keys_values(normal_BqD)
        if state is not None:
            keys, values = state.extend(layer, keys, values)
        own, own_source = (None, None) if state is None else (state.own, state.own_source)
        hidden_BqD = hidden_BqD + self.dropout(self.attn(normal_BqD, keys, values, bias_BHqk, own))
        if self.decoder:
            normal_BqD = lowered(self.cross_norm(hidden_BqD))
            if state is not None:
                # The beams of one source are additional queries to the same keys and values.
                keys, values = state.cross[layer]
                normal_BqD = normal_BqD.reshape(keys.shape[0], -1, normal_BqD.shape[-1])
            else:
                assert encoded_BTD is not None, "a decoder reads an encoder's output or a state"
                keys, values = self.cross.keys_values(encoded_BTD)
            mixed_BqD = self.cross(normal_BqD, keys, values, cross_bias_BHqT, own_source)
            hidden_BqD = hidden_BqD + self.dropout(mixed_BqD.view_as(hidden_BqD))
        return hidden_BqD + self.dropout(self.ff(lowered(self.ff_norm(hidden_BqD))))


class EvaStack(nn.Module):
    """The encoder or the decoder: blocks that share one relative position bias, and a last norm."""

    def __init__(self, config: EvaConfig, layers: int, decoder: bool):
        super().__init__()
        self.blocks = nn.ModuleList(EvaBlock(config, decoder) for _ in range(layers))
        self.relative_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.final_norm = EvaNorm(config.d_model, config.layer_norm_epsilon)
        self.decoder = decoder
        self.dropout = Dropout(config.dropout_rate)

    def position_bias(self, query_positions_Bq: Tensor, key_positions_Bk: Tensor) -> Tensor:
        """The bias of every head by the distance between positions, (B, H, q, k)."""
        relative_Bqk = key_positions_Bk[:, None, :] - query_positions_Bq[:, :, None]
        buckets_Bqk = relative_buckets(relative_Bqk, self.relative_bias.num_embeddings, not self.decoder)
        return self.relative_bias(buckets_Bqk).permute(0, 3, 1, 2)

    def forward(self, hidden_BqD: Tensor, *inputs: Tensor | None, state: EvaState | None = None) -> Tensor:
        """Embedded tokens through all blocks; ``inputs`` and ``state`` as in ``EvaBlock.forward``."""
        hidden_BqD = self.dropout(hidden_BqD)
        inputs = tuple(None if one is None else lowered(one) for one in inputs)  # once, not in each block
        for layer, block in enumerate(self.blocks):
            hidden_BqD = block(hidden_BqD, *inputs, state=state, layer=layer)
        return self.dropout(self.final_norm(hidden_BqD))


class EvaModel(RowModel):
    config_class = EvaConfig
    config: EvaConfig
    _no_split_modules = ["EvaBlock"]
    _input_embed_layer = "word_embeds"
    _tp_plan = TP_PLAN

    def __init__(self, config: EvaConfig):
        super().__init__(config)
        assert config.num_decoder_layers is not None, "the configuration fills it in"
        self.word_embeds = nn.Embedding(config.vocab_size, config.d_model)
        self.role_embeds = nn.Embedding(2, config.d_model)
        self.encoder = EvaStack(config, config.num_layers, decoder=False)
        self.decoder = EvaStack(config, config.num_decoder_layers, decoder=True)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02 if module is self.word_embeds else 1.0)
        elif isinstance(module, EvaNorm):
            init.ones_(module.weight)

    def backbone(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The decoder's output after its last norm, (B, A, D).

        ``input_ids`` (B, T) and ``decoder_input_ids`` (B, A) are int64. Masks are 1 on real tokens; all are real if None.
        Where both are given, they hold the number of the example that a token belongs to, from 1 on, as in packed rows.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        causal_AA = torch.ones(2 * decoder_input_ids.shape[1:], dtype=torch.bool, device=input_ids.device).tril()
        if decoder_attention_mask is None:
            encoder_BTT = cross_BAT = attention_mask.bool()[:, None]
            decoder_BAA = causal_AA[None]
        else:
            encoder_BTT = same_example(attention_mask, attention_mask)
            cross_BAT = same_example(decoder_attention_mask, attention_mask)
            decoder_BAA = same_example(decoder_attention_mask, decoder_attention_mask) & causal_AA
        encoded_BTD = self._encode(self.word_embeds(input_ids), encoder_BTT)
        positions_1A = _positions(decoder_input_ids)
        bias_BHAA = masked_bias(self.decoder.position_bias(positions_1A, positions_1A), decoder_BAA[:, None])
        decoder_BAD = self.word_embeds(decoder_input_ids)
        return self.decoder(decoder_BAD, bias_BHAA, encoded_BTD, _cross_bias(cross_BAT, encoded_BTD))

    def prefill(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, EvaState]:
        """As ``RowModel.prefill``; the encoder's input may have its padding on either side."""
        state = EvaState(len(self.decoder.blocks))
        encoded_RTD = self._encode(self.word_embeds(input_ids), attention_mask.bool()[:, None])
        state.cross = [block.cross.keys_values(encoded_RTD) for block in self.decoder.blocks]  # type: ignore[operator, union-attr]
        state.cross_bias_S11T = _cross_bias(attention_mask.bool()[:, None], encoded_RTD)
        if decoder_attention_mask is None:
            decoder_attention_mask = torch.ones_like(decoder_input_ids)
        positions_RA = decoder_attention_mask.cumsum(-1) - 1
        state.positions_RC = positions_RA[:, :0]
        hidden_RAD = self._advance(decoder_input_ids, positions_RA, decoder_attention_mask.bool(), state)
        return self.lm_head(hidden_RAD[:, -1:]), state

    def step(self, ids_Rq: Tensor, positions_RPq: Tensor, state: DecodeState) -> Tensor:
        assert isinstance(state, EvaState), "a state comes from prefill"
        valid_Rq = torch.ones_like(ids_Rq, dtype=torch.bool)
        return self.lm_head(self._advance(ids_Rq, positions_RPq[:, 0], valid_Rq, state))

    def _advance(self, ids_Rq: Tensor, positions_Rq: Tensor, valid_Rq: Tensor, state: EvaState) -> Tensor:
        state.grow(valid_Rq)
        state.place(positions_Rq)
        seen = state.valid_RC[:, None, None]
        if ids_Rq.shape[1] > 1:
            columns = torch.arange(state.length, device=ids_Rq.device)
            seen = seen & (columns <= columns[-ids_Rq.shape[1] :, None])
        bias_RHqC = masked_bias(self.decoder.position_bias(positions_Rq, state.positions_RC), seen)
        return self.decoder(self.word_embeds(ids_Rq), bias_RHqC, None, state.cross_bias_S11T, state=state)

    def _encode(self, embedded_BTD: Tensor, allowed_BTT: Tensor) -> Tensor:
        """The encoder's output; ``allowed_BTT``: bool (B, 1 or T, T), the keys that a query sees."""
        positions_1T = _positions(embedded_BTD)
        bias_BHTT = masked_bias(self.encoder.position_bias(positions_1T, positions_1T), allowed_BTT[:, None])
        return self.encoder(embedded_BTD, bias_BHTT)


def _cross_bias(allowed_BAT: Tensor, encoded_BTD: Tensor) -> Tensor:
    """Cross-attention has no position bias, only a mask: (B, 1, 1 or A, T)."""
    return masked_bias(encoded_BTD.new_zeros(1, 1, 1, 1), allowed_BAT[:, None])


def _positions(tokens_BT: Tensor) -> Tensor:
    """0 … T - 1, (1, T), for tokens (B, T, …)."""
    return torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
