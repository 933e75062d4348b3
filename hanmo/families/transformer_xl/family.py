"""Turns text into rows of Transformer-XL: prompt and response, tokenised separately and joined directly."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from hanmo.families.base import Family, as_pair
from hanmo.families.transformer_xl import original_format
from hanmo.families.transformer_xl.modeling import TransformerXLConfig, TransformerXLModel
from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer
from hanmo.nn.causal import causal_pack
from hanmo.records import Dialogue, Record, Text
from hanmo.rows import IGNORE, Context, Part, Row, token_inputs


@dataclass
class TransformerXLFamily(Family):
    name = "transformer_xl"
    config_class = TransformerXLConfig
    network_class = TransformerXLModel
    tokenizer_class = TransformerXLTokenizer
    original_format: ClassVar[Any] = original_format
    packs = True
    streams = True
    vocab_padded_to = 128 * 8  # to 128 rows for each of up to 8 tensor-parallel ranks
    lora_targets = ("q_proj", "k_proj", "v_proj", "r_proj", "o_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        # The original's configuration has no ids: they come from the vocabulary.
        self.config.pad_token_id = self.config.eos_token_id = self.tokenizer.eos_token_id

    @property
    def positions(self) -> int | None:
        return None if self.config.relative else self.config.max_position_embeddings

    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        """Running text is cut into rows. A prompt loses its beginning, a response that is still too long its end.

        Where a text goes on after a row, an empty unscored part follows, so that no stop is learned there.
        """
        if isinstance(record, Text):
            return _pieces(self.encode(record.text), limit)
        if isinstance(record, Dialogue) and len(record.turns) < 2:
            return []
        prompt, answer, common = self.prompt_and_answer(record)
        prompt = _last(prompt, max(limit - len(answer), limit // 2))
        whole = len(prompt) + len(answer) <= limit
        answer = answer[: limit - len(prompt)]
        if (not prompt and not answer) or (not whole and len(answer) <= common):
            return []
        parts = [Part((*prompt, *answer[:common]), False), Part(tuple(answer[common:]), True)]
        return [parts if whole else [*parts, Part((), False)]]

    def pack(self, rows: Sequence[Row]) -> Row:
        """No token sees further back than to the beginning of its example."""
        packed = causal_pack(rows)
        ages_T = packed.inputs["position_ids"]
        ones_T = torch.ones_like(ages_T)
        return replace(packed, inputs={**packed.inputs, "attention_mask": ones_T, "reach": ages_T})

    def segments(self, documents: Iterable[Sequence[Part]], length: int) -> list[Row]:
        return stream_rows(documents, length, self.tokenizer.eos_token_id)

    def context(self, record: Record, limit: int) -> Context:
        if isinstance(record, Text):
            ids = self.encode(record.text)
        else:
            pair = as_pair(record, waiting=True)
            ids = [*self.encode(pair.prompt), *self.encode(pair.prefix)]
        return Context(tuple(_last(ids, limit)), tuple(ids))


def _last(ids: list[int], count: int) -> list[int]:
    return ids[max(len(ids) - count, 0) :]


def _pieces(ids: list[int], limit: int) -> list[list[Part]]:
    """A text as rows of at most ``limit`` tokens, each of which starts with the last token of the row before."""
    pieces = []
    for first in range(0, max(len(ids) - 1, 1), max(limit - 1, 1)):
        piece = Part(tuple(ids[first : first + limit]), True)
        pieces.append([piece] if first + limit >= len(ids) else [piece, Part((), False)])
    return pieces if ids else []


def stream_rows(documents: Iterable[Sequence[Part]], length: int, stop_id: int) -> list[Row]:
    """One stream of documents as rows of ``length`` tokens; row i + 1 continues row i.

    ``stop_id`` is predicted after the last token of every document and never an input. The input ``reach`` (T,) is the
    number of earlier tokens that a token sees, below ``length``: to its document's beginning, maybe in an earlier row.
    The last row is padded with unscored ``stop_id``. As published, it may be all padding (the original's loss is then NaN).
    """
    ids: list[int] = []
    labels: list[int] = []
    reach: list[int] = []
    for parts in documents:
        document = [token for part in parts for token in part.ids]
        if not document:
            continue
        targets = [token if part.scored else IGNORE for part in parts for token in part.ids]
        ids += document
        labels += [*targets[1:], stop_id]
        reach += [min(age, length - 1) for age in range(len(document))]
    padding = length - len(ids) % length
    ids += [stop_id] * padding
    labels += [IGNORE] * padding
    before = reach[-1] + 1 if padding < length else 0
    reach += [min(before + age, length - 1) for age in range(padding)]
    cuts = [slice(at, at + length) for at in range(0, len(ids), length)]
    return [Row.of({**token_inputs(ids[cut]), "reach": torch.tensor(reach[cut])}, labels[cut]) for cut in cuts]


FAMILY = TransformerXLFamily
