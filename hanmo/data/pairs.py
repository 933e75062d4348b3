"""Pairs of a chosen and a rejected answer from answers with scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

Answers = Sequence[tuple[str, float]]
Pair = tuple[str, str]  # chosen, rejected


def preference_pairs(prompt: str, answers: Answers) -> list[Pair]:
    """The best answer (the first of equals) against every one that is strictly worse, in order of falling score.

    Empty answers and answers equal to the best take no part; without a prompt there are no pairs.
    """
    if not prompt.strip():
        return []
    ranked = sorted((pair for pair in answers if pair[0].strip()), key=lambda pair: -pair[1])
    return [(ranked[0][0], text) for text, score in ranked[1:] if score < ranked[0][1] and text != ranked[0][0]]


def neighbour_pairs(prompt: str, answers: Answers) -> list[Pair]:
    """Every answer against those of the next lower score: each pair differs by one step of the scale."""
    if not prompt.strip():
        return []
    ranked = sorted((pair for pair in answers if pair[0].strip()), key=lambda pair: -pair[1])
    levels = [[text for text, _ in level] for _, level in groupby(ranked, key=lambda pair: pair[1])]
    return [
        (better, worse) for above, below in pairwise(levels) for better in above for worse in below if better != worse
    ]


def published_pairs(prompt: str, answers: Answers) -> tuple[list[Pair], int]:
    """The published walk over answers as stored, and how many steps were discarded.

    An answer is chosen when its score is above the next one's, and stays so until another is; each next answer is
    rejected. Unsorted answers give wrong pairs.
    """
    pairs, discarded = [], 0
    for chosen, rejected in _walk(answers):
        if chosen and prompt and rejected and chosen != rejected:
            pairs.append((chosen, rejected))
        else:
            discarded += 1
    return pairs, discarded


def _walk(answers: Answers) -> Iterator[tuple[str, str]]:
    chosen = ""
    for (text, score), (below, lower) in pairwise(answers):
        if score > lower:
            chosen = text
        yield chosen, below
