"""A cleaning step that asks a model how well replies follow. torch is imported where it is asked: other steps do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hanmo.data.cleaning.steps import Step, Turns
from hanmo.errors import ConfigError
from hanmo.records import Dialogue, Text

if TYPE_CHECKING:
    from hanmo.families.base import OpenedModel, Row


@dataclass
class ModelScore(Step):
    """What a model makes of a record; removes those below ``least``.

    A model with a value head (``hanmo train reward``, e.g. on true replies against drawn ones, as EVA 2.0's authors
    trained a classifier) gives its reward of the reply. Any other model gives the mean log-probability, natural
    logarithm, of a reply's tokens after what was said before; of a text, of all its tokens. Records longer than
    ``limit`` tokens are cut as in training; one of which nothing fits is not judged.
    """

    model: Path
    least: float
    limit: int = 512
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.limit < 1 or self.batch_size < 1:
            raise ConfigError(f"limit={self.limit}, batch_size={self.batch_size}: both must be at least 1")

    def faults(self, records: Sequence[Turns]) -> list[str | None]:
        scores = self.scores(records)
        return [None if score is None or score >= self.least else f"model score {score:.2f}" for score in scores]

    def scores(self, records: Sequence[Turns]) -> list[float | None]:
        """The score of each record; None where nothing of it fits."""
        opened = _opened(self.model)
        closed = opened.network.value_head is not None
        rows: list[Row] = []
        owners: list[int] = []
        for number, turns in enumerate(records):
            record = Text(turns[0]) if len(turns) == 1 else Dialogue(tuple(turns))
            found = [opened.family.row(parts, closed=closed) for parts in opened.family.parts(record, self.limit)]
            rows += found
            owners += [number] * len(found)
        totals, counts = [0.0] * len(records), [0] * len(records)
        for owner, (total, count) in zip(owners, _scored(opened, rows, self.batch_size), strict=True):
            totals[owner] += total
            counts[owner] += count
        return [total / count if count else None for total, count in zip(totals, counts, strict=True)]


@cache
def _opened(model: Path) -> OpenedModel:
    from hanmo.checkpoints import open_model

    opened = open_model(model)
    opened.network.eval()
    return opened


def _scored(opened: OpenedModel, rows: Sequence[Row], batch_size: int) -> list[tuple[float, int]]:
    """Sum and number of what is averaged: of each row its reward, or the log-probabilities of its tokens."""
    import torch

    from hanmo.families.base import IGNORE, collate

    network = opened.network
    found = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].labels))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = collate([rows[number] for number in chosen], opened.family.padding)
        counts_B = (batch["labels"] != IGNORE).sum(1).tolist()
        if network.value_head is not None:
            batch["labels"] = torch.full_like(batch["labels"], IGNORE)  # spares the logits
        with torch.inference_mode():
            output = network(**{name: tensor.to(network.device) for name, tensor in batch.items()})
        for place, number in enumerate(chosen):
            if network.value_head is not None:
                found[number] = output.value[place, rows[number].end].item(), 1
            else:  # what is not scored has 0
                found[number] = output.logprob[place].double().sum().item(), counts_B[place]
    return found
