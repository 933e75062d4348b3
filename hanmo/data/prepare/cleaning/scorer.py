"""A cleaning step that judges the relevance of replies by a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanmo.config import require
from hanmo.data.prepare.cleaning.steps import Step, Turns
from hanmo.records import PromptResponse

if TYPE_CHECKING:
    from hanmo.families.base import OpenedModel
    from hanmo.rows import Part, Row


@dataclass
class ModelRelevance(Step):
    """Removes records whose replies score less than ``least`` on average over the pairs of turns.

    The score of a language model: log p of the reply after the turn before minus log p after an empty one, per token
    (nats; 0: the turn before does not help); of a model with a value head: the value of the reply. Pairs of more than
    ``limit`` tokens are shortened as in training.
    """

    model: str
    least: float = 0.0
    limit: int = 256
    batch_size: int = 32
    device: str = ""

    def __post_init__(self) -> None:
        require(self, **{name: (getattr(self, name) >= 1, "at least 1") for name in ("limit", "batch_size")})

    def fault(self, turns: Turns) -> str | None:
        return self.faults([turns])[0]

    def faults(self, many: Sequence[Turns]) -> list[str | None]:
        owners = [owner for owner, turns in enumerate(many) for _ in pairwise(turns)]
        pairs = [PromptResponse(before, reply) for turns in many for before, reply in pairwise(turns)]
        scores: list[list[float]] = [[] for _ in many]
        for owner, score in zip(owners, self.scores(pairs), strict=True):
            if score is not None:
                scores[owner].append(score)
        means = [sum(found) / len(found) if found else None for found in scores]
        return [None if mean is None or mean >= self.least else f"model relevance {mean:.3f}" for mean in means]

    def files(self) -> list[Path]:
        return sorted(Path(self.model).rglob("*"))  # empty for a model on a hub

    def scores(self, pairs: Sequence[PromptResponse]) -> list[float | None]:
        """The score of every pair; None if ``limit`` leaves nothing of the reply."""
        from hanmo.nn.finite import require_finite

        opened = _opened(self.model, self.device)
        made = [opened.family.parts(pair, self.limit) for pair in pairs]
        places = [place for place, rows in enumerate(made) if rows]
        parts = [made[place][0] for place in places]
        if opened.network.value_head is not None:
            scores: Sequence[float | None] = self._values(opened, parts)
        else:
            replies = [replace(pairs[place], prompt="", prefix="") for place in places]
            scores = self._gains(opened, parts, replies)
        require_finite((score for score in scores if score is not None), opened.network)
        found = dict(zip(places, scores, strict=True))
        return [found.get(place) for place in range(len(pairs))]

    def _gains(self, opened: OpenedModel, parts: list[list[Part]], replies: list[PromptResponse]) -> list[float | None]:
        alone = [opened.family.parts(reply, self.limit)[0] for reply in replies]
        return [
            # Without a start token the first token of a reply alone is not predicted: neither side counts it.
            sum(after[-len(without) :]) / len(without) - sum(without) / len(without) if without else None
            for after, without in zip(self._logprobs(opened, parts), self._logprobs(opened, alone), strict=True)
        ]

    def _logprobs(self, opened: OpenedModel, parts: list[list[Part]]) -> list[list[float]]:
        rows = [opened.family.row(one) for one in parts]
        return [
            output.logprob[place, : len(row.labels)].cpu()[row.labels >= 0].tolist()
            for row, output, place in self._outputs(opened, rows)
        ]

    def _values(self, opened: OpenedModel, parts: list[list[Part]]) -> list[float]:
        from hanmo.rows import IGNORE

        rows = [opened.family.row(one, feed_stop=True) for one in parts]
        # Without labels no logits are computed.
        rows = [replace(row, labels=row.labels.new_full(row.labels.shape, IGNORE)) for row in rows]
        return [output.value[place, row.end].item() for row, output, place in self._outputs(opened, rows)]

    def _outputs(self, opened: OpenedModel, rows: list[Row]) -> Iterator[tuple[Row, Any, int]]:
        """Each row, with the output of its batch and its place there."""
        import torch

        from hanmo.rows import collate

        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            inputs = collate(batch, opened.family.padding)
            with torch.inference_mode():
                output = opened.network(**{name: value.to(opened.network.device) for name, value in inputs.items()})
            yield from ((row, output, place) for place, row in enumerate(batch))


@cache
def _opened(model: str, device: str) -> OpenedModel:
    """Opened once in each process."""
    from hanmo.checkpoints import open_model

    return open_model(model, device=device or None)
