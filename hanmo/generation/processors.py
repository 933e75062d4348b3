"""The logits processor of families without one of their own: token ids, as transformers' processors define it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from hanmo.generation.settings import Settings

SUPPRESSED = float("-inf")  # the score of suppressed ids


class TokenLogitsProcessor:
    """Repetition penalty, minimum length, no repeated n-grams, and ``settings.suppressed_ids``.

    A ``families.decoding.LogitsProcessor``. The penalty and the n-grams count the ids that the decoder reads of the prompt.
    """

    def __init__(self, settings: Settings, prompts: Sequence[Sequence[int]], stop_ids: Collection[int]):
        self._settings = settings
        self._prompts = [list(prompt) for prompt in prompts]
        self._stop_ids = list(stop_ids)

    @staticmethod
    def needed(settings: Settings) -> bool:
        """Whether the settings need any of this."""
        return bool(
            settings.repetition_penalty != 1
            or settings.min_new_tokens
            or settings.no_repeat_ngram_size
            or settings.suppressed_ids
        )

    def __call__(self, generated: Sequence[Sequence[int]], sources: Sequence[int], scores_RV: Tensor) -> Tensor:
        settings = self._settings
        for row, (ids, source) in enumerate(zip(generated, sources, strict=True)):
            seen = [*self._prompts[source], *ids]
            suppressed = list(settings.suppressed_ids)
            if settings.repetition_penalty != 1:
                penalise(scores_RV[row], set(seen), settings.repetition_penalty)
            if len(ids) < settings.min_new_tokens:
                suppressed += self._stop_ids
            if settings.no_repeat_ngram_size:
                suppressed += repeated(seen, settings.no_repeat_ngram_size)
            if suppressed:
                scores_RV[row, torch.tensor(suppressed, device=scores_RV.device)] = SUPPRESSED
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
