"""Score rules for families without rules of their own, on token ids, as transformers' processors define them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from hanmo.generation.settings import Settings

BANNED = float("-inf")


class TokenLogitsProcessor:
    """Repetition penalty, minimum length, n-gram ban and banned ids over what the decoder has read and said.

    Implements families.base.Rules. The penalty and the n-gram ban count the prompt's ids as said.
    """

    def __init__(self, settings: Settings, prompts: Sequence[Sequence[int]], stop_ids: Collection[int]):
        self._settings = settings
        self._prompts = [list(prompt) for prompt in prompts]
        self._stop_ids = list(stop_ids)

    @staticmethod
    def needed(settings: Settings) -> bool:
        """Whether the settings ask for any of these rules."""
        return bool(
            settings.repetition_penalty != 1
            or settings.min_new_tokens
            or settings.no_repeat_ngram_size
            or settings.banned_ids
        )

    def __call__(self, generated: Sequence[Sequence[int]], sources: Sequence[int], scores_RV: Tensor) -> Tensor:
        settings = self._settings
        for row, (ids, source) in enumerate(zip(generated, sources, strict=True)):
            said = [*self._prompts[source], *ids]
            banned = list(settings.banned_ids)
            if settings.repetition_penalty != 1:
                penalise(scores_RV[row], set(said), settings.repetition_penalty)
            if len(ids) < settings.min_new_tokens:
                banned += self._stop_ids
            if settings.no_repeat_ngram_size:
                banned += repeated(said, settings.no_repeat_ngram_size)
            if banned:
                scores_RV[row, torch.tensor(banned, device=scores_RV.device)] = BANNED
        return scores_RV


def penalise(scores_V: Tensor, ids: Collection[int], penalty: float) -> None:
    """Make the ids less likely, in place: negative scores are multiplied by the penalty, others divided."""
    chosen = torch.tensor(sorted(ids), dtype=torch.long, device=scores_V.device)
    scores = scores_V[chosen]
    scores_V[chosen] = torch.where(scores < 0, scores * penalty, scores / penalty)


def repeated(ids: Sequence[int], size: int) -> set[int]:
    """The ids that would complete an n-gram of this size that occurs in ``ids`` already.

    >>> repeated([1, 2, 3, 1, 2], 3)
    {3}
    """
    if len(ids) < size:
        return set()
    opening = tuple(ids[len(ids) - size + 1 :])
    return {
        ids[start + size - 1] for start in range(len(ids) - size + 1) if tuple(ids[start : start + size - 1]) == opening
    }
