"""The GLM network (Du et al. 2022, arXiv:2103.10360): one stack, two position tables, prefix attention.

A token has two positions: its place in the context (in an answer that of the mask token), and its place inside the
answer (0 in the context). All tokens see the context; tokens of an answer also see the earlier tokens of the answers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hanmo.errors import ConfigError, unknown
from hanmo.nn.causal import same_example
from hanmo.nn.cpu.layers import Dropout
from hanmo.nn.decode_state import DecodeState
from hanmo.nn.prenorm import PreNormBlock, PreNormModel, check_positions

ACTIVATIONS = ("gelu_new", "gelu")


class GlmConfig(PretrainedConfig):
    """Configuration of a GLM model.

    ``mask_token_ids`` are [MASK], [sMASK], [gMASK]; <sop> and <eop> start and end an answer. The original 10B model's
    [gMASK] is ``eop_token_id``; its ports copied that row of the embedding to 50009.
    """

    model_type = "hanmo-glm"
    attribute_map = {"num_hidden_layers": "num_layers", "max_position_embeddings": "max_sequence_length"}

    vocab_size: int = 50048
    hidden_size: int = 1024
    num_layers: int = 24
    num_attention_heads: int = 16
    max_sequence_length: int = 1024  # highest position, and highest place inside an answer
    block_position_encoding: bool = True  # positions have a second dimension, the place inside the answer
    #: "gelu_new" is the tanh form the released weights were trained with, "gelu" the exact (erf) form of a later port
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embedding_dropout_prob: float = 0.1
    attention_dropout_prob: float = 0.1
    output_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 50000
    eos_token_id: int | None = 50000
    mask_token_ids: list[int] | tuple[int, ...] = (50003, 50008, 50009)
    sop_token_id: int = 50006
    eop_token_id: int = 50007
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(unknown("activation_function", self.activation_function, ACTIVATIONS))
        super().__post_init__(**kwargs)


class GlmModel(PreNormModel):
    """GLM with its tied output head. Logits at t predict ``labels[t]``: inputs are shifted where rows are made."""

    config_class = GlmConfig

    def __init__(self, config: GlmConfig):
        super().__init__(config)
        width = config.hidden_size
        positions = config.max_sequence_length + (1 if config.block_position_encoding else 0)
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(positions, width)
        self.embed_places = nn.Embedding(positions, width) if config.block_position_encoding else None
        self.dropout = Dropout(config.embedding_dropout_prob)
        heads, dropouts = config.num_attention_heads, (config.attention_dropout_prob, config.output_dropout_prob)
        self.add_blocks(PreNormBlock, heads, 4 * width, config.activation_function, *dropouts)

    def backbone(self, *args: Any, **inputs: Any) -> Tensor:
        return self.final_norm(self.trunk(*args, **inputs))

    def features(self, **inputs: Any) -> tuple[Tensor, Tensor, None]:
        """The value head of the published reward models reads the output before the final norm."""
        hidden_BTD = self.trunk(**inputs)
        return self.final_norm(hidden_BTD), hidden_BTD, None

    def trunk(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prefix: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Tensor:
        """Output of the last block before the final norm, (B, T, D).

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 on real tokens, in packed rows the number of the example from 1 on; or (B, 1, T, S),
                used unchanged.
            position_ids: (B, 2, T) int64 (position, place in the answer); (B, T) without places. 0 … T-1 and 0 if None.
            prefix: (B,) or (1,) int64, the number of context tokens, which all tokens see, without padding on the left;
                in packed rows (B, T): the column where the context of a token's example ends.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        if state is None or state.at is None:
            check_positions(position_ids, self.embed_positions, state.length if state else input_ids.shape[1])
        position_BT, place_BT = position_ids, torch.zeros_like(position_ids)
        if position_ids.dim() == 3:
            position_BT, place_BT = position_ids.unbind(1)
        hidden_BTD = self.embed_tokens(input_ids) + self.embed_positions(position_BT)
        if self.embed_places is not None:
            hidden_BTD = hidden_BTD + self.embed_places(place_BT)
        hidden_BTD = self.dropout(hidden_BTD)
        mask = prefix_mask(attention_mask, prefix, hidden_BTD, state)
        for layer, block in enumerate(self.layers):
            hidden_BTD = block(hidden_BTD, mask, state=state, layer=layer)
        return hidden_BTD


def prefix_mask(
    attention_mask: Tensor | None, prefix: Tensor | None, hidden_BTD: Tensor, state: DecodeState | None
) -> Tensor | None:
    """The bool mask (B, 1, T, S) of prefix attention; None: plain causal. A query without keys sees itself: no NaN."""
    queries, device = hidden_BTD.shape[1], hidden_BTD.device
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask.bool()
    if state is not None and state.at is not None:
        return state.valid_RC[:, None, None, :]
    valid_BS = state.valid_RC if state is not None else attention_mask
    if prefix is not None and prefix.dim() == 2:
        assert attention_mask is not None and state is None, "packed rows are trained on, with their examples' numbers"
        column_T = torch.arange(queries, device=device)
        seen_BTT = (column_T <= column_T[:, None]) | (column_T < prefix[:, :, None])
        return (seen_BTT & same_example(attention_mask, attention_mask))[:, None]
    if valid_BS is None and prefix is None:
        return None
    keys = queries if valid_BS is None else valid_BS.shape[1]
    column_S = torch.arange(keys, device=device)
    row_T1 = column_S[-queries:, None]
    allowed = (column_S <= row_T1)[None]
    if prefix is not None:
        end_B = prefix.view(-1) if valid_BS is None else prefix.view(-1) + (valid_BS.long().cumsum(1) == 0).sum(1)
        allowed = allowed | (column_S < end_B[:, None, None])
    if valid_BS is not None:
        allowed = allowed & valid_BS[:, None, :].bool()
        allowed = allowed | ((column_S == row_T1) & ~allowed.any(-1, keepdim=True))
    return allowed[:, None]
