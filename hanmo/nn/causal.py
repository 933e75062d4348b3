"""Rows, prompts and attention masks of decoder-only networks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hanmo.errors import UnsupportedError
from hanmo.nn.decode_state import DecodeState
from hanmo.rows import IGNORE, Part, Prompt, Row, token_inputs


def causal_row(parts: Sequence[Part], stop_id: int, stop: bool = True, feed_stop: bool = False) -> Row:
    """Parts end to end, each token predicted from the one before it. See ``Family.row`` for the arguments."""
    ids = [token for part in parts for token in part.ids]
    scored = [part.scored for part in parts for _ in part.ids]
    targets = [token if counts else IGNORE for token, counts in zip(ids, scored, strict=True)]
    labels = [*targets[1:], stop_id if stop and parts[-1].scored else IGNORE]
    if feed_stop:
        ids.append(stop_id)
        labels.append(IGNORE)
    return Row.of(token_inputs(ids), labels)


def causal_pack(rows: Sequence[Row]) -> Row:
    """Concatenated rows: positions start again with each, and the mask holds the number of the row, from 1 on."""
    pieces = [row.inputs["input_ids"] for row in rows]
    positions = torch.cat([torch.arange(len(piece)) for piece in pieces])
    inputs = {"input_ids": torch.cat(pieces), "attention_mask": example_numbers(pieces), "position_ids": positions}
    return joined(rows, inputs)


def joined(rows: Sequence[Row], inputs: dict[str, Tensor]) -> Row:
    """One row with these inputs and the labels of several, one after the other."""
    labels_A = torch.cat([row.labels for row in rows])
    return Row(inputs, labels_A, torch.cat([row.weights for row in rows]), end=len(labels_A) - 1)


def example_numbers(pieces: Sequence[Tensor]) -> Tensor:
    """1 for every token of the first piece, 2 for the second, and so on, int64."""
    lengths = torch.tensor([len(piece) for piece in pieces])
    return torch.arange(1, len(pieces) + 1).repeat_interleave(lengths)


def same_example(queries_Bq: Tensor, keys_Bk: Tensor) -> Tensor:
    """The keys with the query's example number, bool (B, q, k); queries with number 0, padding, see every example."""
    return (keys_Bk != 0)[:, None] & ((queries_Bq[:, :, None] == keys_Bk[:, None]) | (queries_Bq == 0)[:, :, None])


def causal_prompt(context_ids: Sequence[int], stop_ids: tuple[int, ...]) -> Prompt:
    """A prompt whose positions count on from the context, one position dimension. UnsupportedError for an empty context."""
    if not context_ids:
        raise UnsupportedError("the prompt is empty: this model needs at least one token to continue")
    length = len(context_ids)
    inputs = {**token_inputs(context_ids), "position_ids": torch.arange(length)}
    return Prompt(inputs, start=torch.tensor([length]), step=torch.tensor([1]), stop_ids=stop_ids)


def causal_mask(attention_mask: Tensor | None, hidden_BTD: Tensor, state: DecodeState | None) -> Tensor | None:
    """The ``attn_mask`` of scaled_dot_product_attention, broadcastable to (B, H, T, S); None: plain causal.

    A query always sees itself, so that padding never gives NaN. In decoding the mask comes from ``state``.

    Args:
        attention_mask: (B, T) bool or integer, 1 on real tokens, in packed rows the number of the token's example;
            (B, T) floating, added to the scores; (B, 1, T, T) or (B, T, T) bool or integer, used unchanged.
    """
    queries = hidden_BTD.shape[1]
    if state is not None:
        if state.at is not None:
            return state.valid_RC[:, None, None, :]
        if queries == 1 and not state.has_padding:
            return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=hidden_BTD.device)
        columns = torch.arange(state.length, device=hidden_BTD.device)
        rows = columns[-queries:, None]
        return ((columns <= rows) & state.valid_RC[:, None, None, :]) | (columns == rows)
    if attention_mask is None:
        return None
    if attention_mask.dim() > 2:
        return attention_mask.bool().view(attention_mask.shape[0], 1, queries, -1)
    columns = torch.arange(queries, device=hidden_BTD.device)
    causal = columns <= columns[:, None]
    if attention_mask.is_floating_point():
        blocked = torch.zeros(queries, queries, device=hidden_BTD.device).masked_fill(~causal, float("-inf"))
        return (blocked + attention_mask[:, None, None, :]).to(hidden_BTD.dtype)
    return (causal & same_example(attention_mask, attention_mask)[:, None]) | (columns == columns[:, None])
