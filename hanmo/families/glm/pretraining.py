"""GLM's pretraining: blank filling (Du et al. 2022, arXiv:2103.10360, section 2).

Three objectives: hidden "spans" of about three tokens, hidden "sentences", and the hidden second part of a "document".
Each hidden span is replaced by one mask token and predicted after the text and the spans before it, in random order.
"""

import math
from collections.abc import Mapping, Sequence
from random import Random

SHARE = 0.15  # of the tokens, hidden as spans or sentences
MEAN_SPAN = 3.0  # tokens
DOCUMENT = (0.5, 1.0)  # the share of a document that is hidden is uniform between these

Span = tuple[int, int]  # first and one past the last token


def draw_objective(objectives: Mapping[str, float], rng: Random) -> str:
    names = list(objectives)
    return rng.choices(names, [objectives[name] for name in names])[0]


def draw_spans(length: int, rng: Random) -> list[Span]:
    """Spans that hide 15 % of ``length`` tokens, at least one, in order and apart; lengths are Poisson (3), never 0."""
    wanted = max(1, round(SHARE * length))
    lengths: list[int] = []
    while (missing := wanted - sum(lengths)) > 0:
        lengths.append(min(_poisson(rng) or 1, missing))
    # Between spans lies one token; the other free tokens are distributed at random, also before the first and after the last.
    free = length - wanted - (len(lengths) - 1)
    cuts = sorted(rng.randint(0, free) for _ in lengths)
    spans, hidden = [], 0
    for number, (cut, size) in enumerate(zip(cuts, lengths, strict=True)):
        first = cut + hidden + number
        spans.append((first, first + size))
        hidden += size
    return spans


def draw_sentences(ends: Sequence[int], rng: Random) -> list[Span]:
    """Whole sentences, together 15 % of the tokens, in order; at least one stays. ``ends``: one past their last tokens."""
    sentences = list(zip([0, *ends], ends, strict=False))
    rng.shuffle(sentences)
    hidden: list[Span] = []
    for sentence in sentences[:-1]:
        if sum(last - first for first, last in hidden) >= SHARE * ends[-1]:
            break
        hidden.append(sentence)
    return sorted(hidden)


def draw_document(length: int, rng: Random) -> list[Span]:
    """The end of a document, from half of it to all of it, at least one token."""
    return [(min(round(length * (1 - rng.uniform(*DOCUMENT))), length - 1), length)]


def _poisson(rng: Random, mean: float = MEAN_SPAN) -> int:
    """A Poisson draw (Knuth's product of uniforms)."""
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count
