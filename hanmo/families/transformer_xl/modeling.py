"""The Transformer-XL network (Dai et al. 2019, arXiv:1901.02860) as 文汇 uses it: a pre-norm decoder with segment memory.

Positions are relative, or learned in the absolute variant. Two forms of memory give identical results: in training the
detached inputs of every layer, projected anew by the current weights; in decoding keys and values.

Shape suffixes: K head width, T and q new tokens, m memory, S = m + q keys.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig
from transformers import initialization as init

from hanmo.errors import ConfigError, UnsupportedError
from hanmo.families.transformer_xl.attention import PiecewiseAttention
from hanmo.families.transformer_xl.relative import (
    MASKED,
    SinusoidTable,
    hide_,
    position_scores,
    relative_scores,
    visible,
)
from hanmo.nn.cpu.layers import Dropout, Linear, dropout, lowered
from hanmo.nn.decode_state import BLOCK, DecodeState
from hanmo.nn.prenorm import TP_PLAN, Attention, PreNormBlock, PreNormModel
from hanmo.nn.tensor_parallel import OUT_HEADS, local

# the two biases (H, K), and the position table (columns, D) as a function of the number of columns
Relative = tuple[Tensor, Tensor, Callable[[int], Tensor]]
Memory = Sequence[Tensor]  # L + 1 tensors (B, m, D): the embeddings and every layer's output; empty at the start


class TransformerXLConfig(PretrainedConfig):
    model_type = "hanmo-transformer-xl"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    vocab_size: int = 50048
    hidden_size: int = 2560
    num_layers: int = 32
    num_heads: int = 32
    relative: bool = True  # positions from a sinusoid table; otherwise learned absolute ones
    max_position_embeddings: int = 512  # of learned positions
    segment_length: int = 512  # tokens of a training segment; longer prompts are read in such pieces
    memory_length: int = 256  # tokens of memory in training
    half_positions: bool = False  # compute the sinusoid table in half precision, as the released weights were trained
    embedding_dropout: float = 0.1  # of the embeddings and the position table (originally twice of the embeddings)
    attention_dropout: float = 0.1
    hidden_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = 50000
    pad_token_id: int | None = 50000
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.hidden_size % self.num_heads or self.hidden_size % 2:
            raise ConfigError(
                f"hidden_size={self.hidden_size} must be even and divisible by num_heads={self.num_heads}"
            )
        if self.segment_length < 1 or self.memory_length < 0:
            raise ConfigError(
                f"segment_length={self.segment_length} must be at least 1, memory_length={self.memory_length} at least 0"
            )
        super().__post_init__(**kwargs)

    @property
    def span(self) -> int:
        """The number of earlier tokens that a token sees: the effective memory of published generation."""
        return self.segment_length + self.memory_length - 1


class MemoryState(DecodeState):
    """Memory in decoding: keys and values of the last ``span`` tokens, and the position keys of all distances so far."""

    def __init__(self, layers: int, span: int):
        super().__init__(layers)
        self.span = span
        self.position_keys: list[Tensor | None] = [None] * layers  # the same for all rows, shared by ``take``

    def grow(self, valid_Rq: Tensor) -> None:
        if self.at is None and self.length >= self.span + BLOCK:  # grows by a block at a time, so that copies are rare
            self.keep_last(self.span)
        super().grow(valid_Rq)

    def fixed(self, columns: int) -> "MemoryState":
        other = super().fixed(columns)
        assert isinstance(other, MemoryState)
        # A recorded step reads these, whatever other states put in their place.
        other.position_keys = list(self.position_keys)
        return other

    def columns(self, queries: int) -> int:
        """The number of columns that ``queries`` new tokens (already grown) can see, their own included."""
        return self.length if self.at is not None else min(self.length, self.span + queries)

    def visible(self) -> Tensor:
        """The mask (R, 1, 1, length) of the newest token, in a state with ``fixed`` columns."""
        distance_C = self._distances()
        return (self.valid_RC & (distance_C >= 0) & (distance_C <= self.span))[:, None, None]

    def _distances(self) -> Tensor:
        """Of each column from the newest one, negative behind it, where columns are ``fixed``."""
        assert self.at is not None
        return self.at - torch.arange(self.length, device=self.at.device)

    def extend(self, layer: int, key_RHqK: Tensor, value_RHqK: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().extend(layer, key_RHqK, value_RHqK)
        first = self.length - self.columns(key_RHqK.shape[2])
        return keys[:, :, first:], values[:, :, first:]

    def positions(self, layer: int, columns: int, project: Callable[[int, int], Tensor]) -> Tensor:
        """Position keys (H, columns, K) of the distances columns - 1 … 0, projected once and kept.

        They are projected in blocks, so that the bits of one do not depend on how many were needed at a time.
        """
        kept_HSK = self.position_keys[layer]
        known = 0 if kept_HSK is None else kept_HSK.shape[1]
        if known < columns:
            ends = range(known + BLOCK, (columns + BLOCK - 1) // BLOCK * BLOCK + 1, BLOCK)
            blocks = [project(end, BLOCK) for end in reversed(ends)]
            kept_HSK = torch.cat(blocks if kept_HSK is None else [*blocks, kept_HSK], dim=1)
            self.position_keys[layer] = kept_HSK
        assert kept_HSK is not None, "there is at least one column"
        if self.at is not None:
            return kept_HSK.index_select(1, kept_HSK.shape[1] - 1 - self._distances().clamp_min(0))
        return kept_HSK[:, kept_HSK.shape[1] - columns :]


class TransformerXLAttention(Attention):
    def __init__(self, config: TransformerXLConfig, heads: int, dropout: float):
        super().__init__(config, heads, dropout)
        self.r_proj = Linear(config.hidden_size, config.hidden_size) if config.relative else None

    def forward(  # type: ignore[override]  # it also needs the memory
        self,
        hidden_BSD: Tensor,
        queries: int,
        mask: Tensor | None,
        relative: Relative | None,
        state: MemoryState | None,
        layer: int,
    ) -> Tensor:
        q_BHqK = self._split(self.q_proj(hidden_BSD[:, -queries:]))
        k_BHSK, v_BHSK = self._split(self.k_proj(hidden_BSD)), self._split(self.v_proj(hidden_BSD))
        if state is not None:
            k_BHSK, v_BHSK = state.extend(layer, k_BHSK, v_BHSK)
        content_BHqK, position_BHqK, r_HSK = q_BHqK, None, None
        if relative is not None:
            *biases, table = relative
            content_BHqK, position_BHqK = ((q_BHqK + bias_HK[:, None]).to(q_BHqK.dtype) for bias_HK in biases)
            columns = k_BHSK.shape[2]
            project = partial(self._position_keys, table)
            r_HSK = project(columns, columns) if state is None else state.positions(layer, columns, project)
        inputs = (content_BHqK, position_BHqK, k_BHSK, v_BHSK, r_HSK, mask)
        if state is not None and state.own is not None:
            mixed_BHqK = self._each_alone(state.own, *inputs[:5])
        elif not torch.is_grad_enabled() and not self.training:
            mixed_BHqK = self._mix(*inputs)
        elif hidden_BSD.device.type == "cpu" and not torch.compiler.is_compiling():
            mixed_BHqK = PiecewiseAttention.apply(*inputs, self.dropout if self.training else 0.0)
        else:
            # The scores are by far the largest tensors: they are computed again in the backward pass.
            mixed_BHqK = checkpoint(self._mix, *inputs, use_reentrant=False)
        return self.o_proj(mixed_BHqK.transpose(1, 2).flatten(2))

    def _position_keys(self, table: Callable[[int], Tensor], columns: int, count: int) -> Tensor:
        """Keys (H, count, K) of the ``count`` largest of the distances columns - 1 … 0."""
        assert self.r_proj is not None  # there is a table
        return self.r_proj(table(columns)[:count]).unflatten(-1, (-1, self.head_width)).transpose(0, 1)

    def _each_alone(
        self, own: Sequence[int], content: Tensor, position: Tensor | None, keys: Tensor, values: Tensor, table: Any
    ) -> Tensor:
        """``_mix`` for each row and so many of its last keys, all of which it sees."""
        mixed = []
        for row, columns in enumerate(own):
            one = slice(row, row + 1)
            mine = None if position is None else position[one]
            nearest = None if table is None else table[:, -columns:]
            kept = keys[one, :, -columns:], values[one, :, -columns:]
            mixed.append(self._mix(content[one], mine, *kept, nearest, None))
        return torch.cat(mixed)

    def _mix(
        self,
        content_BHqK: Tensor,
        position_BHqK: Tensor | None,
        k_BHSK: Tensor,
        v_BHSK: Tensor,
        r_HSK: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        if content_BHqK.device.type != "cpu":
            added = None if position_BHqK is None or r_HSK is None else position_scores(position_BHqK, r_HSK)
            added = mask if added is None else hide_(added, mask, MASKED)
            options = {"attn_mask": added, "dropout_p": self.dropout if self.training else 0.0}
            return nn.functional.scaled_dot_product_attention(content_BHqK, k_BHSK, v_BHSK, **options)  # type: ignore[arg-type]
        scores = hide_(relative_scores(content_BHqK, position_BHqK, k_BHSK, r_HSK), mask, MASKED)
        probabilities = scores.softmax(-1).to(v_BHSK.dtype)  # under autocast it is fp32
        return dropout(probabilities, self.dropout, self.training) @ v_BHSK


class TransformerXLBlock(PreNormBlock):
    """A block whose keys and values also come from the memory, which is kept un-normalised."""

    attention_class = TransformerXLAttention

    def forward(  # type: ignore[override]  # it also needs the memory
        self,
        hidden_BTD: Tensor,
        memory_BmD: Tensor | None,
        mask: Tensor | None,
        relative: Relative | None,
        state: MemoryState | None = None,
        layer: int = 0,
    ) -> Tensor:
        joined_BSD = hidden_BTD if memory_BmD is None else torch.cat([memory_BmD, hidden_BTD], dim=1)
        normed_BSD = lowered(self.attention_norm(joined_BSD))
        mixed_BTD = self.attention(normed_BSD, hidden_BTD.shape[1], mask, relative, state, layer)
        return self.add_mlp(hidden_BTD + self.dropout(mixed_BTD))


class TransformerXLModel(PreNormModel):
    """Transformer-XL with its tied output head. Logits at t predict the token at t + 1."""

    config_class = TransformerXLConfig
    _no_split_modules = ["TransformerXLBlock"]
    _tp_plan = TP_PLAN | dict.fromkeys(("r_w_bias", "r_r_bias", "layers.*.attention.r_proj"), OUT_HEADS)
    _supports_sdpa = False
    _keep_in_fp32_modules_strict = ["inv_freq"]

    def __init__(self, config: TransformerXLConfig):
        super().__init__(config)
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        if config.relative:
            self.r_w_bias = nn.Parameter(torch.empty(config.num_heads, width // config.num_heads))
            self.r_r_bias = nn.Parameter(torch.empty(config.num_heads, width // config.num_heads))
            self.positions = SinusoidTable(width, config.half_positions)
        else:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        self.dropout = Dropout(config.embedding_dropout)
        dropouts = config.attention_dropout, config.hidden_dropout
        self.add_blocks(TransformerXLBlock, config.num_heads, 4 * width, "gelu_new", *dropouts)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SinusoidTable):
            init.copy_(module.inv_freq, module.initial())
        elif isinstance(module, TransformerXLModel) and module.config.relative:
            init.zeros_(module.r_w_bias)
            init.zeros_(module.r_r_bias)

    def backbone(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        memory: Memory | None = None,
        reach: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: MemoryState | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """The head's input (B, T, D); with ``memory`` also the memory for the next segment.

        Args:
            input_ids: (B, T) int64; or ``inputs_embeds`` (B, T, D).
            attention_mask: (B, T) or (B, m + T), 1 on real tokens (all if None), each of which sees ``config.span`` tokens
                before it; or (1 or B, 1, T, >= S) or (B, T, >= S), whose last S columns are used unchanged.
            position_ids: (B, T) int64, for absolute positions; counted from the end of the memory if None.
            memory: see ``Memory``; () at the start of a text. The new one, ``config.memory_length`` at most, is detached.
            reach: (B, T) int64, the largest number of earlier tokens that a token sees (documents in one stream).
        """
        hidden_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        queries = hidden_BTD.shape[1]
        past = memory[0].shape[1] if memory else 0
        if state is not None:
            columns, attention_mask = state.columns(queries), state.valid_RC
        else:
            columns = past + queries
        if not self.config.relative:
            hidden_BTD = hidden_BTD + self._absolute(
                position_ids, past, queries, check=state is None or state.at is None
            )
        hidden_BTD = self.dropout(hidden_BTD)
        relative = self._relative(columns, hidden_BTD.dtype, state is not None)
        mask = None
        if state is not None and state.at is not None:
            mask = state.visible()
        elif state is None or queries > 1 or state.has_padding:
            mask = visible(queries, columns, self.config.span, attention_mask, reach, hidden_BTD.device)
        kept = [hidden_BTD]
        for layer, block in enumerate(self.layers):
            past_BmD = memory[layer] if memory else None
            hidden_BTD = block(hidden_BTD, past_BmD, mask, relative, state=state, layer=layer)
            kept.append(hidden_BTD)
        output_BTD = self.final_norm(hidden_BTD)
        return output_BTD if memory is None else (output_BTD, self._remember(memory, kept))

    def _relative(self, columns: int, dtype: torch.dtype, lazily: bool) -> Relative | None:
        """``lazily``: compute the table only when a layer wants it, which is rare in decoding; else once for all layers."""
        if not self.config.relative:
            return None
        biases = local(self.r_w_bias), local(self.r_r_bias)
        if lazily:
            return *biases, lambda wanted: self.positions(wanted, dtype)
        table_SD = self.dropout(self.positions(columns, dtype))
        return *biases, lambda wanted: table_SD

    def _absolute(self, position_ids: Tensor | None, past: int, queries: int, check: bool) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(past, past + queries, device=self.embed_positions.weight.device)[None]
        if check:
            self.require_positions(position_ids)
        return self.embed_positions(position_ids)

    def require_positions(self, positions: Tensor) -> None:
        places = self.config.max_position_embeddings
        if not self.config.relative and (last := int(positions.max())) >= places:
            raise UnsupportedError(
                f"position {last}: this model has learned positions 0 to {places - 1} only; "
                "give it a shorter text, or use the relative variant, which has no such limit"
            )

    def _remember(self, memory: Memory, kept: list[Tensor]) -> tuple[Tensor, ...]:
        if not self.config.memory_length:
            return ()
        joined = [torch.cat(pair, dim=1) for pair in zip(memory, kept, strict=True)] if memory else kept
        return tuple(tensor[:, -self.config.memory_length :].detach() for tensor in joined)

    def prefill(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
    ) -> tuple[Tensor, MemoryState]:
        """Reads long prompts segment by segment; every token sees the same ``config.span`` tokens."""
        state = MemoryState(self.config.num_layers, self.config.span)
        for first in range(0, input_ids.shape[1], self.config.segment_length):
            piece = slice(first, first + self.config.segment_length)
            positions = None if position_ids is None else position_ids[:, piece]
            mask_RT = attention_mask[:, piece]
            hidden_RTD = self._advance(state, mask_RT, input_ids[:, piece], position_ids=positions)
        return self.lm_head(hidden_RTD[:, -1:]), state
