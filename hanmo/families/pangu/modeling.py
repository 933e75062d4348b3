"""The PanGu-α network (Zeng et al. 2021, arXiv:2104.12369): a GPT-2-like decoder under a query layer.

The query layer is the last block. It follows the final norm and takes its queries from an embedding of positions alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hanmo.errors import ConfigError, unknown
from hanmo.nn.causal import causal_mask
from hanmo.nn.cpu.layers import Dropout
from hanmo.nn.decode_state import DecodeState
from hanmo.nn.prenorm import ACTIVATIONS, PreNormBlock, PreNormModel, check_positions


class PanguConfig(PretrainedConfig):
    model_type = "hanmo-pangu"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    vocab_size: int = 40000
    hidden_size: int = 1024
    num_layers: int = 24  # with the query layer
    num_heads: int = 16
    max_position_embeddings: int = 1024
    intermediate_size: int | None = None  # width of the MLP; 4 x hidden_size if None
    #: "gelu" is the exact (erf) GELU of the port, "gelu_new" the tanh form of the original; others: prenorm.ACTIVATIONS
    activation_function: str = "gelu"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | None = 9
    pad_token_id: int | None = 6
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(unknown("activation_function", self.activation_function, ACTIVATIONS))
        super().__post_init__(**kwargs)


class PanguModel(PreNormModel):
    """PanGu-α with its tied output head. Logits at t predict the token at t + 1."""

    config_class = PanguConfig
    trees_are_exact = None

    def __init__(self, config: PanguConfig):
        super().__init__(config)
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        self.embed_queries = nn.Embedding(config.max_position_embeddings, width)
        self.dropout = Dropout(config.embd_pdrop)
        inner, activation = config.intermediate_size or 4 * width, config.activation_function
        self.add_blocks(PreNormBlock, config.num_heads, inner, activation, config.attn_pdrop, config.resid_pdrop)

    def backbone(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: DecodeState | None = None,
    ) -> Tensor:
        """Output of the query layer, (B, T, D).

        Args:
            input_ids: (B, T) int64; or ``inputs_embeds`` (B, T, D).
            attention_mask: see ``causal_mask``. The published port added every mask but bool and int32 to the scores as
                it was, which a floating mask reproduces.
            position_ids: (B, T) int64, of both position tables; 0 … T-1 if None.
            token_type_ids: (B, T) int64, looked up in the token table (as in GPT-2).
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        if state is None or state.at is None:
            check_positions(position_ids, self.embed_positions, state.length if state else inputs_embeds.shape[1])
        hidden_BTD = inputs_embeds + self.embed_positions(position_ids)
        if token_type_ids is not None:
            hidden_BTD = hidden_BTD + self.embed_tokens(token_type_ids)
        hidden_BTD = self.dropout(hidden_BTD)
        mask = causal_mask(attention_mask, hidden_BTD, state)
        *blocks, query_block = self.layers
        for layer, block in enumerate(blocks):
            hidden_BTD = block(hidden_BTD, mask, state=state, layer=layer)
        hidden_BTD = self.final_norm(hidden_BTD)
        queries_BTD = self.embed_queries(position_ids).expand_as(hidden_BTD)
        return query_block(hidden_BTD, mask, queries_BTD, state=state, layer=len(blocks))

    def tree(self, ids_BT: Tensor, positions_BT: Tensor, sees_BTT: Tensor) -> Tensor:
        return self.backbone(ids_BT, attention_mask=sees_BTT, position_ids=positions_BT)
