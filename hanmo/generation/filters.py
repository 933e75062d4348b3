"""Top-k and top-p as pure functions of scores."""

from torch import Tensor

OFF = float("-inf")
CANDIDATES = 512  # tokens that top-p reads before it sorts the whole vocabulary


def top_k(scores_RV: Tensor, k: int, cut: float = OFF) -> Tensor:
    """Keep the k best scores of each row; ties with the k-th stay. The others become ``cut``; k = 0 keeps all."""
    if k <= 0 or k >= scores_RV.shape[-1]:
        return scores_RV
    kth_R1 = scores_RV.topk(k, dim=-1).values[..., -1:]
    return scores_RV.masked_fill(scores_RV < kth_R1, cut)


def top_p(scores_RV: Tensor, p: float, cut: float = OFF) -> Tensor:
    """Keep the smallest set of best tokens whose probability exceeds p; the others become ``cut``.

    p = 0 and p >= 1 keep all. The vocabulary is sorted only if its first few hundred tokens do not decide.
    """
    if p <= 0 or p >= 1:
        return scores_RV
    probs_RV = scores_RV.softmax(-1)
    width = min(CANDIDATES, scores_RV.shape[-1])
    best_Rc, order_Rc = scores_RV.topk(width, dim=-1)
    sums_Rc = probs_RV.gather(-1, order_Rc).cumsum(-1)
    if width < scores_RV.shape[-1] and not bool((sums_Rc[..., -1] > p).all()):
        best_Rc, order_Rc = scores_RV.sort(dim=-1, descending=True)
        sums_Rc = probs_RV.gather(-1, order_Rc).cumsum(-1)
    count_R1 = 1 + (sums_Rc[..., :-1] <= p).sum(-1, keepdim=True)
    # Of equal scores the first ones are kept, as a stable sort would have it; topk promises no order among them.
    last_R1 = best_Rc.gather(-1, count_R1 - 1)
    above_RV, equal_RV = scores_RV > last_R1, scores_RV == last_R1
    kept_RV = above_RV | (equal_RV & (equal_RV.cumsum(-1) <= count_R1 - above_RV.sum(-1, keepdim=True)))
    return scores_RV.masked_fill(~kept_RV, cut)
