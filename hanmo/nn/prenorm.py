"""The pre-norm transformer block with biases (as in GPT-2), and the networks built from it."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from hanmo.errors import UnsupportedError
from hanmo.nn.cpu.layers import Dropout, Linear, lowered
from hanmo.nn.decode_state import DecodeState, attend
from hanmo.nn.row_model import RowModel
from hanmo.nn.tensor_parallel import IN_HEADS, OUT_HEADS, VOCABULARY_ROWS, WHOLE_LOGITS

TP_PLAN = {
    "embed_tokens": VOCABULARY_ROWS,
    "layers.*.attention.q_proj": OUT_HEADS,
    "layers.*.attention.k_proj": OUT_HEADS,
    "layers.*.attention.v_proj": OUT_HEADS,
    "layers.*.attention.o_proj": IN_HEADS,
    "layers.*.up_proj": OUT_HEADS,
    "layers.*.down_proj": IN_HEADS,
    "lm_head": WHOLE_LOGITS,
}


# the exact (erf) form, and the faster implementation of the tanh form
GELUS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "gelu_new": partial(nn.GELU, approximate="tanh")}
# By the names that transformers had when the ports were written.
ACTIVATIONS = (
    *GELUS, "gelu_10", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "gelu_accurate", "laplace", "linear", "mish",
    "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "swish", "tanh",
)  # fmt: skip


class Attention(nn.Module):
    """Multi-head attention; keys and values are kept in ``state`` when decoding."""

    def __init__(self, config: Any, heads: int, dropout: float):
        super().__init__()
        width = config.hidden_size
        self.head_width, self.dropout = width // heads, dropout
        self.q_proj, self.k_proj = Linear(width, width), Linear(width, width)
        self.v_proj, self.o_proj = Linear(width, width), _residual(Linear(width, width))

    def forward(
        self, queries_BTD: Tensor, hidden_BTD: Tensor, mask: Tensor | None, state: DecodeState | None, layer: int
    ) -> Tensor:
        q_BHTK = self._split(self.q_proj(queries_BTD))
        k_BHSK, v_BHSK = self._split(self.k_proj(hidden_BTD)), self._split(self.v_proj(hidden_BTD))
        if state is not None:
            k_BHSK, v_BHSK = state.extend(layer, k_BHSK, v_BHSK)
        dropout = self.dropout if self.training else 0.0
        own = None if state is None else state.own
        mixed_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, mask, own, dropout_p=dropout, is_causal=mask is None)
        return self.o_proj(mixed_BHTK.transpose(1, 2).flatten(2))

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class PreNormBlock(GradientCheckpointingLayer):
    """x += attention(norm(x)); x += mlp(norm(x)). Queries may come from elsewhere (PanGu's query layer)."""

    attention_class = Attention

    def __init__(self, config: Any, heads: int, inner: int, activation: str, attention_dropout: float, dropout: float):
        super().__init__()
        width, epsilon = config.hidden_size, config.layer_norm_epsilon
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = self.attention_class(config, heads, attention_dropout)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.up_proj = Linear(width, inner)
        self.activation = GELUS[activation]() if activation in GELUS else ACT2FN[activation]
        self.down_proj = _residual(Linear(inner, width))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        hidden_BTD: Tensor,
        mask: Tensor | None,
        queries_BTD: Tensor | None = None,
        state: DecodeState | None = None,
        layer: int = 0,
    ) -> Tensor:
        normed_BTD = lowered(self.attention_norm(hidden_BTD))
        if queries_BTD is None:
            queries_BTD = normed_BTD
        mixed_BTD = self.attention(queries_BTD, normed_BTD, mask, state, layer)
        return self.add_mlp(hidden_BTD + self.dropout(mixed_BTD))

    def add_mlp(self, hidden_BTD: Tensor) -> Tensor:
        inner_BTF = self.activation(self.up_proj(self.mlp_norm(hidden_BTD)))
        return hidden_BTD + self.dropout(self.down_proj(inner_BTF))


def check_positions(positions: Tensor, table: nn.Embedding, columns: int) -> None:
    """Raise UnsupportedError if a position has no row in the table.

    Reading positions synchronises a GPU: they are read only if a row's tokens, ``columns``, are more than the table has.
    """
    if columns > table.num_embeddings and (last := int(positions.max())) >= table.num_embeddings:
        raise beyond_positions(last + 1, table.num_embeddings)


def beyond_positions(tokens: int, positions: int) -> UnsupportedError:
    return UnsupportedError(
        f"{tokens} tokens in a row, but this model has {positions} positions: give a smaller limit, or "
        "when generating one that leaves room for max_new_tokens"
    )


def _residual(linear: nn.Linear) -> nn.Linear:
    linear.writes_residual = True  # type: ignore[assignment]
    return linear


class PreNormModel(RowModel):
    """A network of ``PreNormBlock`` with a tied output head, whose ``backbone`` takes the ``state`` of decoding."""

    base_model_prefix = ""
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
    _no_split_modules = ["PreNormBlock"]
    _tp_plan = TP_PLAN

    def add_blocks(self, block: type[PreNormBlock], *args: Any) -> None:
        """Make the blocks, each with ``args``, the final norm and the output head; call it after the embeddings."""
        config = self.config
        self.layers = nn.ModuleList(block(config, *args) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As in GPT-2: N(0, std), and N(0, std / sqrt(2 x layers)) for projections into the residual stream."""
        if isinstance(module, nn.Linear | nn.Embedding):
            scale = (2 * self.config.num_layers) ** 0.5 if hasattr(module, "writes_residual") else 1
            init.normal_(module.weight, std=self.config.initializer_range / scale)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def prefill(self, input_ids: Tensor, attention_mask: Tensor, *args: Any, **inputs: Any) -> tuple[Tensor, Any]:
        state = DecodeState(self.config.num_layers)
        hidden_RTD = self._advance(state, attention_mask, input_ids, attention_mask, *args, **inputs)
        return self.lm_head(hidden_RTD[:, -1:]), state

    def step(self, ids_Rq: Tensor, positions_RPq: Tensor, state: Any) -> Tensor:
        valid_Rq = torch.ones_like(ids_Rq)
        return self.lm_head(self._advance(state, valid_Rq, ids_Rq, position_ids=positions_RPq.squeeze(1)))

    def require_positions(self, positions: Tensor) -> None:
        check_positions(positions, self.embed_positions, columns=sys.maxsize)  # type: ignore[arg-type]  # of PanGu-α and GLM

    def _advance(self, state: DecodeState, valid_Rq: Tensor, *args: Any, **inputs: Any) -> Tensor:
        state.grow(valid_Rq)
        hidden_RqD = self.backbone(*args, state=state, **inputs)
        assert isinstance(hidden_RqD, Tensor)  # a tuple only if ``memory`` is given
        return hidden_RqD
