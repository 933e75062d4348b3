"""Changes to scores before a draw: top-k, top-p, min-p, and the logits processor for families without their own."""

import math
from collections.abc import Collection, Sequence

from torch import Tensor

from hanmo.families.decoding import penalise, suppress
from hanmo.generation.settings import Settings

SUPPRESSED = float("-inf")  # the score of suppressed ids, and of those that a filter leaves out
CANDIDATES = 512  # the best tokens that top-p tries before it sorts the whole vocabulary


class TokenLogitsProcessor:
    """Repetition penalty, no repeated n-grams, minimum length, ``suppressed_ids``, as in transformers' processors.

    The penalty and the n-grams include the part of the prompt that the decoder reads.
    """

    def __init__(self, settings: Settings, prompts: Sequence[Sequence[int]], stop_ids: Collection[int]):
        self._settings = settings
        self._prompts = [list(prompt) for prompt in prompts]
        self._stop_ids = stop_ids

    @staticmethod
    def needed(settings: Settings) -> bool:
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
    """The ids that would complete an n-gram that already occurs in ``ids``: 3 for 1 2 3 1 2 and size 3."""
    starts = range(len(ids) - size + 1)
    opening = list(ids[len(starts) :])
    return {ids[start + size - 1] for start in starts if list(ids[start : start + size - 1]) == opening}


def top_k(scores_RV: Tensor, k: int, cut: float = SUPPRESSED) -> Tensor:
    """Keep the k best scores of each row; ties with the k-th stay. The others become ``cut``; k = 0 keeps all."""
    if k <= 0 or k >= scores_RV.shape[-1]:
        return scores_RV
    kth_R1 = scores_RV.topk(k, dim=-1).values[..., -1:]
    return scores_RV.masked_fill(scores_RV < kth_R1, cut)


def top_p(scores_RV: Tensor, p: float, cut: float = SUPPRESSED) -> Tensor:
    """Keep the smallest set of best tokens with a probability above p; the others become ``cut``. 0 and 1 keep all."""
    if p <= 0 or p >= 1:
        return scores_RV
    probs_RV = scores_RV.softmax(-1)
    width = min(CANDIDATES, scores_RV.shape[-1])
    best_Rc, order_Rc = scores_RV.topk(width, dim=-1)
    sums_Rc = probs_RV.gather(-1, order_Rc).cumsum(-1)
    # A GPU sorts faster than the host waits for the answer.
    if width < scores_RV.shape[-1] and (scores_RV.device.type != "cpu" or not bool((sums_Rc[..., -1] > p).all())):
        best_Rc, order_Rc = scores_RV.sort(dim=-1, descending=True)
        sums_Rc = probs_RV.gather(-1, order_Rc).cumsum(-1)
    count_R1 = 1 + (sums_Rc[..., :-1] <= p).sum(-1, keepdim=True)
    # Of equal scores the first ones are kept, as a stable sort would have it; topk promises no order among them.
    last_R1 = best_Rc.gather(-1, count_R1 - 1)
    above_RV, equal_RV = scores_RV > last_R1, scores_RV == last_R1
    kept_RV = above_RV | (equal_RV & (equal_RV.cumsum(-1) <= count_R1 - above_RV.sum(-1, keepdim=True)))
    return scores_RV.masked_fill(~kept_RV, cut)


def min_p(scores_RV: Tensor, p: float, cut: float = SUPPRESSED) -> Tensor:
    """Keep the tokens with at least p times the probability of the best one; the others become ``cut``. 0 keeps all.

    Source: Nguyen et al. 2024, arXiv:2407.01082.
    """
    if p <= 0:
        return scores_RV
    return scores_RV.masked_fill(scores_RV < scores_RV.amax(-1, keepdim=True) + math.log(p), cut)
