"""The base of our networks: output head, value head, loss, and the decoding protocol.

The loss is computed in the forward of the module that Trainer wraps: outside it, gradients are wrong under DDP, FSDP2
fails and LoRA on the head is ignored. The head is called on chunks of the scored positions only, to save memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hanmo.errors import ConfigError, unknown
from hanmo.losses import token_entropies, token_logprobs, weighted_nll
from hanmo.nn.decode_state import DecodeState
from hanmo.rows import IGNORE, scored_places

CHUNK = 1024  # scored positions whose logits are computed at a time
KEPT = 2 * CHUNK  # scored positions whose logits are kept for the backward pass; see ``kept_places``
ValueKind = Literal["linear", "mlp"]
VALUE_KINDS = ("linear", "mlp")


@contextmanager
def evaluating(network: Any) -> Iterator[Any]:
    """The network without dropout and gradients; its training mode is restored at the end."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield network
    finally:
        network.train(training)


@dataclass
class RowOutput(ModelOutput):
    """The result of a network for a batch of rows; ``logits`` without labels, ``loss`` and ``logprob`` with labels."""

    loss: Tensor | None = None  # scalar fp32
    logits: Tensor | None = None  # (B, A, V)
    logprob: Tensor | None = None  # (B, A) fp32, log p(label) where scored and 0 elsewhere
    entropy: Tensor | None = None  # (B, A) fp32 in nats where scored, on request
    value: Tensor | None = None  # (B, A) fp32 at every place, from networks with a value head
    memory: tuple[Tensor, ...] | None = None  # for each row's next segment, from networks that were given a memory


class ValueHead(nn.Module):
    """A reward or value for every place: "linear" as in published reward models, "mlp" for critics."""

    def __init__(self, width: int, kind: str):
        super().__init__()
        if kind not in VALUE_KINDS:
            raise ConfigError(unknown("value_head", kind, VALUE_KINDS))
        self.inner = nn.Linear(width, 2 * width) if kind == "mlp" else None
        self.output = nn.Linear(width if self.inner is None else 2 * width, 1, bias=kind == "mlp")

    def forward(self, hidden_BAD: Tensor) -> Tensor:
        """Values (B, A) fp32."""
        if self.inner is not None:
            hidden_BAD = self.inner(hidden_BAD).relu()
        return self.output(hidden_BAD).squeeze(-1).float()


def configured_value_head(config: Any) -> ValueHead | None:
    """The head that a configuration names under ``value_head``, or None."""
    kind = getattr(config, "value_head", None)
    return ValueHead(config.get_text_config().hidden_size, kind) if kind else None


def attach_value_head(network: Any, kind: ValueKind) -> None:
    """Add a fresh value head, which is saved and opened with the network."""
    network.config.value_head = kind
    network.value_head = ValueHead(network.config.get_text_config().hidden_size, kind).to(network.device, network.dtype)


def values_of(network: Any, hidden_BAD: Tensor, labels: Tensor | None, inputs: dict[str, Any]) -> Tensor | None:
    """Values (B, A) of rows: from the network's critic if it has one and rows are scored, else from its value head."""
    if network.critic is not None and labels is not None:
        nothing = torch.full_like(labels, IGNORE)
        return network.critic(labels=nothing, weights=nothing.float() * 0, scored=labels.new_empty(0), **inputs).value
    return None if network.value_head is None else network.value_head(hidden_BAD)


class RowModel(PreTrainedModel):
    """A network that scores rows and decodes. Subclasses define ``backbone``, ``lm_head``, ``prefill`` and ``step``."""

    lm_head: nn.Module
    value_head: ValueHead | None
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Trainer otherwise divides the loss again, and drops position 0 of "causal" models' labels.
    accepts_loss_kwargs = True
    loss_type = "hanmo_rows"
    #: whether ``tree`` is exact; networks that have one set this to None: not probed yet
    trees_are_exact: bool | None = False

    def __init__(self, config: Any):
        super().__init__(config)
        self.value_head = configured_value_head(config)
        self.critic: nn.Module | None = None  # while a policy is trained: a second network, which computes the values

    def backbone(self, *args: Any, **inputs: Any) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """The input of the output head, (B, A, D); if given the ``memory`` of the last segment, also the new memory."""
        raise NotImplementedError

    def features(self, **inputs: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """The inputs of the output head and of the value head, (B, A, D) each, and the memory of ``backbone``."""
        hidden = self.backbone(**inputs)
        hidden_BAD, memory = hidden if isinstance(hidden, tuple) else (hidden, None)
        return hidden_BAD, hidden_BAD, memory

    def forward(
        self,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        entropy: bool = False,
        suppressed_ids: Tensor | None = None,
        scored: Tensor | None = None,
        **inputs: Any,
    ) -> RowOutput:
        """Score rows, or compute all logits if there are no labels.

        Args:
            labels: (B, A) int64 aligned with the logits (not shifted here), -100 where nothing is scored.
            weights: (B, A) fp32; 1 wherever scored if None.
            num_items_in_batch: sum of the weights of the whole optimizer step; of this batch if None.
            suppressed_ids: int64, ids that cannot be sampled: log p is normalised over all others.
            scored: (N,) int64, the ``scored_places`` of the labels; found here if None, for which a GPU is waited for.
        """
        hidden_BAD, valued_BAD, memory = self.features(**inputs)
        value_BA = values_of(self, valued_BAD, labels, inputs)
        if labels is None:
            return RowOutput(logits=self.lm_head(hidden_BAD), value=value_BA, memory=memory)
        head, kept = self.lm_head, kept_places(self)
        logprob_BA, entropy_BA = score_tokens(head, hidden_BAD, labels, entropy, suppressed_ids, kept, scored=scored)
        if weights is None:
            weights = (labels != IGNORE).float()
        loss = weighted_nll(logprob_BA, weights, num_items_in_batch)
        return RowOutput(loss=loss, logprob=logprob_BA, entropy=entropy_BA, value=value_BA, memory=memory)

    def prefill(self, *args: Any, **inputs: Any) -> tuple[Tensor, DecodeState]:
        """Read left-padded prompts: logits after the last token, (R, 1, V), and the decoding state."""
        raise NotImplementedError

    def step(self, ids_Rq: Tensor, positions_RPq: Tensor, state: Any) -> Tensor:
        """Feed q further tokens to every row: logits (R, q, V); ``state`` is extended in place."""
        raise NotImplementedError

    def require_positions(self, positions: Tensor) -> None:
        """Raise UnsupportedError for a position that the network has not; a step in ``fixed`` columns does not look."""

    def tree(self, ids_BT: Tensor, positions_BT: Tensor, sees_BTT: Tensor) -> Tensor:
        """The output head's input (B, T, D) for rows in which texts branch; ``sees_BTT``: bool, the keys of each token."""
        raise NotImplementedError


def kept_places(network: Any) -> int:
    """The number of scored positions whose logits are kept: 0 under full, not selective, activation checkpointing."""
    checkpointed = (module for module in network.modules() if getattr(module, "gradient_checkpointing", False))
    full = any("context_fn" not in module._gradient_checkpointing_func.keywords for module in checkpointed)
    return 0 if full else KEPT


def score_tokens(
    head: nn.Module,
    hidden_BAD: Tensor,
    labels_BA: Tensor,
    entropy: bool = False,
    suppressed_ids: Tensor | None = None,
    kept: int = KEPT,
    chunk: int = CHUNK,
    scored: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log p(label) at the scored positions, (B, A) fp32 with zeros elsewhere; also entropies, on request.

    The logits of the first ``kept`` scored positions, in whole chunks, are kept for the backward pass; the others are
    computed again there, so that memory does not grow with the batch. ``suppressed_ids`` are never labels.
    """
    places_N = scored_places(labels_BA) if scored is None else scored
    hidden_ND, labels_N = hidden_BAD.flatten(0, 1)[places_N], labels_BA.flatten()[places_N]

    def chunk_scores(hidden_nD: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
        logits_nV = without_suppressed(head(hidden_nD), suppressed_ids)
        entropies_n = token_entropies(logits_nV) if entropy else logits_nV.new_zeros(0)
        return token_logprobs(logits_nV, labels_n), entropies_n

    scores = []
    for place, (hidden_nD, labels_n) in enumerate(zip(hidden_ND.split(chunk), labels_N.split(chunk), strict=True), 1):
        if torch.is_grad_enabled() and place * chunk > kept:
            scores.append(checkpoint(chunk_scores, hidden_nD, labels_n, use_reentrant=False))
        else:
            scores.append(chunk_scores(hidden_nD, labels_n))
    logprobs, entropies = zip(*scores, strict=True)

    def scatter(values: tuple[Tensor, ...]) -> Tensor:
        empty = hidden_BAD.new_zeros(labels_BA.numel(), dtype=torch.float32)
        return empty.index_copy(0, places_N, torch.cat(values).float()).view(labels_BA.shape)

    return scatter(logprobs), scatter(entropies) if entropy else None


def without_suppressed(logits: Tensor, suppressed_ids: Tensor | None) -> Tensor:
    """Logits (…, V) under which these ids have probability 0; finite, so that entropies stay numbers."""
    if suppressed_ids is None:
        return logits
    return logits.index_fill(-1, suppressed_ids, torch.finfo(logits.dtype).min)
