"""The logits processor of families without one of their own: token ids, as transformers' processors define it."""

from collections.abc import Collection, Sequence

from torch import Tensor

from hanmo.families.decoding import penalise, suppress
from hanmo.generation.settings import Settings

SUPPRESSED = float("-inf")  # the score of suppressed ids


class TokenLogitsProcessor:
    """Repetition penalty, minimum length, no repeated n-grams, and ``settings.suppressed_ids``.

    The penalty and the n-grams count the ids that the decoder reads of the prompt.
    """

    def __init__(self, settings: Settings, prompts: Sequence[Sequence[int]], stop_ids: Collection[int]):
        self._settings = settings
        self._prompts = [list(prompt) for prompt in prompts]
        self._stop_ids = stop_ids

    @staticmethod
    def needed(settings: Settings) -> bool:
        """Whether the settings need any of this."""
        switched_on = settings.min_new_tokens or settings.no_repeat_ngram_size or settings.suppressed_ids
        return bool(switched_on or settings.repetition_penalty != 1)

    def __call__(self, generated: Sequence[Sequence[int]], sources: Sequence[int], scores_RV: Tensor) -> Tensor:
        settings = self._settings
        seen = [[*self._prompts[source], *ids] for ids, source in zip(generated, sources, strict=True)]
        if settings.repetition_penalty != 1:
            penalise(scores_RV, list(map(set, seen)), settings.repetition_penalty)
        suppressed = [set(settings.suppressed_ids) for _ in seen]
        for ids, all_ids, row_ids in zip(generated, seen, suppressed, strict=True):
            if len(ids) < settings.min_new_tokens:
                row_ids.update(self._stop_ids)
            if settings.no_repeat_ngram_size:
                row_ids |= repeated(all_ids, settings.no_repeat_ngram_size)
        suppress(scores_RV, suppressed, SUPPRESSED)
        return scores_RV


def repeated(ids: Sequence[int], size: int) -> set[int]:
    """The ids that would complete an n-gram of this size that occurs in ``ids`` already: of 1 2 3 1 2 and size 3 the 3."""
    starts = range(len(ids) - size + 1)
    opening = list(ids[len(starts) :])
    return {ids[start + size - 1] for start in starts if list(ids[start : start + size - 1]) == opening}
