"""Rewards of answers by a reward model."""

from collections.abc import Sequence

import torch

from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.nn.finite import require_finite
from hanmo.nn.row_model import evaluating
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers
from hanmo.rows import Part, chunked, collate, unscored


def score_rows(
    opened: OpenedModel, rows: Sequence[Sequence[Part]], finished: Sequence[bool], batch_size: int
) -> list[float]:
    """The rewards of rows given as parts, read at the stop token of a finished answer, else at the last token.

    Raises:
        ConfigError: the model is no reward model.
        NotANumberError: a reward is no finite number.
    """
    network, family = opened.network, opened.family
    if network.value_head is None:
        raise ConfigError(f"{opened.source}: has no value head; train one: hanmo train reward MODEL DATA")
    made = [family.row(parts, stop=end, feed_stop=end) for parts, end in zip(rows, finished, strict=True)]
    order = sorted(range(len(made)), key=lambda place: len(made[place].labels))
    scores = [0.0] * len(made)
    with evaluating(network):
        for places in chunked(order, batch_size):
            batch = unscored(collate([made[place] for place in places], family.padding))
            output = network(**{name: tensor.to(network.device) for name, tensor in batch.items()})
            ends = torch.tensor([made[place].end for place in places], device=network.device)
            for place, score in zip(places, output.value.gather(1, ends[:, None])[:, 0].tolist(), strict=True):
                scores[place] = score
    require_finite(scores, network)
    return scores


def score_records(
    opened: OpenedModel, records: Sequence[Record], limit: int, response_limit: int | None = None, batch_size: int = 8
) -> list[float | None]:
    """The reward of each record's response; None where it does not fit."""
    found = [opened.family.parts(record, limit, response_limit) for record in records]
    rows = [rows[0] for rows in found if rows]
    scores = iter(score_rows(opened, rows, [True] * len(rows), batch_size))
    return [next(scores) if rows else None for rows in found]


def with_answers(record: Record) -> list[Dialogue | PromptResponse]:
    """The records whose responses are scored: one for each answer of scored answers, else the record itself."""
    if isinstance(record, ScoredAnswers):
        return [record.ending(text) for text, _ in record.answers]
    if isinstance(record, Dialogue) and len(record.turns) < 2:
        raise ConfigError(f"{record.where}: a dialogue of one turn has no reply to score")
    if isinstance(record, Dialogue | PromptResponse):
        return [record]
    raise ConfigError(f"{record.where}: running text has no response to score")
