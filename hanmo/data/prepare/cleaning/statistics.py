"""Cleaning steps that learn from the data first: relevance between turns, and fluency by an n-gram model."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hanmo.config import named_function, require
from hanmo.data.prepare.cleaning.steps import Step, Turns
from hanmo.data.prepare.views import views
from hanmo.records import iter_records

Scorer = Callable[[Sequence[str], str], float]  # turns before, reply


@dataclass
class Relevance(Step):
    """Removes dialogues whose replies have less than ``least`` in common with earlier turns on average.

    The words that a reply shares with earlier turns, each weighted by its rarity (idf) and by distance (how many turns
    back, to the power of ``-decay``), over the weight of all its words. Replies of fewer than ``from_words`` words are
    not scored: "好啊" answers anything. ``scorer``: "module:function" to call instead with (turns before, reply).
    """

    least: float = 0.005
    decay: float = 0.5
    from_words: int = 8
    scorer: str = ""
    needs_fit = True
    _documents: int = field(default=0, repr=False)
    _counts: Counter[str] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        require(self, decay=(0 <= self.decay <= 100, "between 0 and 100"))

    def fit(self, turns: Turns) -> None:
        for turn in turns:
            self._documents += 1
            self._counts.update(set(_words(turn)))

    def fault(self, turns: Turns) -> str | None:
        score: Scorer = named_function(self.scorer, "relevance.scorer") if self.scorer else self.score
        replies = range(1, len(turns))
        judged = [place for place in replies if self.scorer or len(_words(turns[place])) >= self.from_words]
        scores = [score(turns[:place], turns[place]) for place in judged]
        if not scores or (mean := sum(scores) / len(scores)) >= self.least:
            return None
        return f"relevance {mean:.4f}"

    def score(self, before: Sequence[str], reply: str) -> float:
        """From 0 (nothing in common) to 1 (every word is in the turn before)."""
        words = set(_words(reply))
        nearest: dict[str, int] = {}
        for distance, turn in enumerate(reversed(before), 1):
            for word in words.intersection(_words(turn)):
                nearest.setdefault(word, distance)
        whole = sum(map(self._rarity, words))
        return sum(self._rarity(word) * distance**-self.decay for word, distance in nearest.items()) / (whole or 1.0)

    def _rarity(self, word: str) -> float:
        return math.log((1 + self._documents) / (1 + self._counts[word]))


def _words(text: str) -> list[str]:
    import jieba

    jieba.setLogLevel(60)
    return [word for word in jieba.cut(text, HMM=False) if word[0].isalnum()]


@dataclass
class Fluency(Step):
    """Removes records with a turn below ``least``: the mean log-probability of a character under a trigram model.

    The model is counted from ``corpus`` (records of any form) or from the data itself; then every text is scored by
    the counts of the others (its own n-grams are taken out once).
    """

    least: float = -7.0  # natural logarithm, per character
    corpus: Path | None = None
    from_length: int = 6
    needs_fit = True
    _counts: tuple[Counter[str], ...] = field(default_factory=lambda: (Counter(), Counter(), Counter()), repr=False)

    def fit(self, turns: Turns) -> None:
        if self.corpus is None:
            self._count(turns)
        elif not self._counts[0]:
            for record in iter_records(self.corpus):
                for turns in views(record):
                    self._count(turns)

    def _count(self, turns: Turns) -> None:
        for turn in turns:
            text = "\n\n" + turn
            for size, counts in enumerate(self._counts, 1):
                counts.update(text[end - size : end] for end in range(3, len(text) + 1))

    def fault(self, turns: Turns) -> str | None:
        for turn in turns:
            if len(turn) >= self.from_length and (score := self.score(turn)) < self.least:
                return f"fluency {score:.2f}"
        return None

    def score(self, text: str) -> float:
        """Mean natural logarithm of a character's probability, the three orders interpolated."""
        own = 1 if self.corpus is None else 0
        ones, twos, threes = self._counts
        everything, kinds = self._total, len(ones)
        padded, total = "\n\n" + text, 0.0
        for end in range(3, len(padded) + 1):
            one, two, three = padded[end - 1], padded[end - 2 : end], padded[end - 3 : end]
            before_one, before_two = padded[end - 2], padded[end - 3 : end - 1]
            low = (max(ones[one] - own, 0) + 0.5) / (everything + 0.5 * kinds)
            middle = max(twos[two] - own, 0) / max(ones[before_one] - own, 1)
            high = max(threes[three] - own, 0) / max(twos[before_two] - own, 1)
            total += math.log(0.2 * low + 0.3 * min(middle, 1.0) + 0.5 * min(high, 1.0))
        return total / max(len(text), 1)

    @cached_property
    def _total(self) -> int:
        return self._counts[0].total()
