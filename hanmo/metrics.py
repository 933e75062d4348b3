"""Metrics of generated text, between 0 and 1, as pure functions of token sequences (for Chinese: of characters).

Every sample has one hypothesis and one or more references. EVA's published evaluation has flaws:

- published: Dist-k misses the last k-gram of every hypothesis, ROUGE-n compares two sets of n-grams over everything
  joined, and an empty reference has no F1 and no ROUGE-L (here: an UnsupportedError).
- corrected: every k-gram counts, ROUGE-n is a mean over samples, and where a reference has nothing to compare
  (it is empty, or shorter than n) the sample scores 1 if the hypothesis equals it and 0 otherwise.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from hanmo.errors import UnsupportedError

Tokens = Sequence[str]
BLEU_ORDERS = 4
BETA = 1.2  # weight of recall in ROUGE-L


class Overlap(NamedTuple):
    recall: float
    f: float


def ngrams(tokens: Tokens, n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none if there are fewer than n tokens."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4, each over orders 1..k with equal weights (Papineni et al. 2002).

    Counts are clipped against all references of a sample; the brevity penalty uses the closest reference length, the
    shorter of two equally close ones. A hypothesis shorter than n still adds 1 to the denominator of order n. The j-th
    order without a match has precision 1 / (2^j x denominator) (Chen & Cherry 2014, method 3); no match at all gives 0.
    """
    _check(hypotheses, references)
    logs, unmatched = [], 0
    for n in range(1, BLEU_ORDERS + 1):
        matches, total = _clipped(hypotheses, references, n)
        if n == 1 and matches == 0:
            return [0.0] * BLEU_ORDERS
        unmatched += matches == 0
        logs.append(math.log(matches / total if matches else 1 / (2**unmatched * total)))
    length = sum(len(hypothesis) for hypothesis in hypotheses)
    expected = sum(
        min((len(option) for option in options), key=lambda size: (abs(size - len(hypothesis)), size))
        for hypothesis, options in zip(hypotheses, references, strict=True)
    )
    brevity = 1.0 if length > expected else math.exp(1 - expected / length)
    return [brevity * math.exp(math.fsum(logs[:k]) / k) for k in range(1, BLEU_ORDERS + 1)]


def distinct(hypotheses: Sequence[Tokens], k: int, published: bool = False) -> float:
    """Dist-k (Li et al. 2016): distinct k-grams / all k-grams over all hypotheses; 0 if there are none."""
    found = (ngrams(tokens, k) for tokens in hypotheses)
    seen = Counter(chain.from_iterable(grams[:-1] if published else grams for grams in found))
    return len(seen) / seen.total() if seen else 0.0


def unigram_f1(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], published: bool = False) -> float:
    """Mean over samples of the best F1 between the bags of tokens of the hypothesis and of a reference."""
    return _mean_score(_bag_f1, hypotheses, references, "F1" if published else None)


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], published: bool = False) -> float:
    """ROUGE-L (Lin 2004): mean over samples of F from the longest common subsequence.

    F = (1 + beta^2) P R / (R + beta^2 P), beta = 1.2, with P and R each the best over the references.
    """
    return _mean_score(_lcs_f, hypotheses, references, "ROUGE-L" if published else None)


def rouge_n(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], n: int) -> Overlap:
    """ROUGE-n (Lin 2004): mean recall and F1 of clipped n-gram counts, each the best over a sample's references."""
    _check(hypotheses, references)
    overlaps = [
        [_overlap(hypothesis, reference, n) for reference in options]
        for hypothesis, options in zip(hypotheses, references, strict=True)
    ]
    recalls = [max(overlap.recall for overlap in of_sample) for of_sample in overlaps]
    return Overlap(_mean(recalls), _mean([max(overlap.f for overlap in of_sample) for of_sample in overlaps]))


def rouge_n_published(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], n: int) -> float:
    """The published ROUGE-n, of all hypotheses and all first references joined: n-grams run across samples."""
    _check(hypotheses, references)
    found = set(ngrams(list(chain.from_iterable(hypotheses)), n))
    expected = set(ngrams(list(chain.from_iterable(options[0] for options in references)), n))
    return len(found & expected) / len(expected) if expected else 0.0


def common_subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence, by bit-parallel dynamic programming (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    row = whole = (1 << len(first)) - 1
    for token in second:
        matching = row & places.get(token, 0)
        row = ((row + matching) | (row - matching)) & whole
    return len(first) - row.bit_count()


def _clipped(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], n: int) -> tuple[int, int]:
    """Matches of order n clipped per sample, and the number of n-grams."""
    matches = total = 0
    for hypothesis, options in zip(hypotheses, references, strict=True):
        found = Counter(ngrams(hypothesis, n))
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in options:
            allowed |= Counter(ngrams(reference, n))
        matches += (found & allowed).total()
        total += max(1, found.total())
    return matches, total


def _bag_f1(hypothesis: Tokens, options: Sequence[Tokens]) -> float:
    if not hypothesis:
        return float(not all(options))
    bag = Counter(hypothesis)
    return max(2 * (bag & Counter(option)).total() / (len(hypothesis) + len(option)) for option in options)


def _lcs_f(hypothesis: Tokens, options: Sequence[Tokens]) -> float:
    if not hypothesis:
        return float(not all(options))
    lengths = [(common_subsequence(hypothesis, reference), len(reference)) for reference in options if reference]
    if not lengths:
        return 0.0
    precision = max(common for common, _ in lengths) / len(hypothesis)
    recall = max(common / length for common, length in lengths)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision else 0.0


def _overlap(hypothesis: Tokens, reference: Tokens, n: int) -> Overlap:
    found, expected = Counter(ngrams(hypothesis, n)), Counter(ngrams(reference, n))
    if not expected:
        same = float(list(hypothesis) == list(reference))
        return Overlap(same, same)
    common = (found & expected).total()
    return Overlap(common / expected.total(), 2 * common / (found.total() + expected.total()))


def _check(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    assert len(hypotheses) == len(references), f"{len(hypotheses)} hypotheses, {len(references)} samples of references"
    assert all(references), "a sample without a reference"


def _mean_score(
    score: Callable[[Tokens, Sequence[Tokens]], float],
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    published: str | None,
) -> float:
    """The mean of a score over samples; ``published``: the name of a metric that refuses empty references."""
    for sample, options in enumerate(references if published else ()):
        if not all(options):
            raise UnsupportedError(
                f"sample {sample} (from 0): the published {published} divides by zero for an empty reference; "
                "leave that record out, or use the corrected reading, where it is defined"
            )
    _check(hypotheses, references)
    return _mean([score(hypothesis, options) for hypothesis, options in zip(hypotheses, references, strict=True)])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
