"""The official CMRC 2018 metric (Cui et al. 2019, arXiv:1810.07366): longest common run of characters, and equality.

Texts are lower-cased, stripped and freed of punctuation; a Chinese character is a token, and so is a word of other
characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》……·、「」（）－～『』")
# Words of other scripts, as the Treebank rules cut them: brackets, quotes and signs stand alone, so do a comma that no digit
# follows, an English ending behind an apostrophe, and a full stop at the end.
_ALONE = r"[;@#$%&?!\"()\[\]{}<>]|\.\.\.|,(?!\d)|'(?:s|m|d|ll|re|ve)\b|n't\b|\.(?=\s*$)"
WORDS = re.compile(rf"{_ALONE}|(?:(?!{_ALONE})\S)+")
CHINESE = re.compile(r"([一-龥])")


def tokens(text: str) -> list[str]:
    """Characters and words without punctuation.

    >>> tokens("18小时，HBO")
    ['18', '小', '时', 'hbo']
    """
    pieces = CHINESE.split("".join(_kept(text)))
    return [word for piece in pieces for word in WORDS.findall(piece)]


def exact(prediction: str, references: Sequence[str]) -> bool:
    """The prediction equals a reference, punctuation and case aside."""
    return any("".join(_kept(prediction)) == "".join(_kept(reference)) for reference in references)


def f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1 over the references, where what is common is the longest run of tokens in both."""
    said = tokens(prediction)
    return max(_f1(said, tokens(reference)) for reference in references)


def _f1(said: list[str], expected: list[str]) -> float:
    common = common_run(said, expected)
    return 2 * common / (len(said) + len(expected)) if common else 0.0


def common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest run of tokens that stands in both."""
    longest = 0
    row = [0] * (len(second) + 1)
    for token in first:
        row = [0, *(row[place] + 1 if token == other else 0 for place, other in enumerate(second))]
        longest = max(longest, *row)
    return longest


def _kept(text: str) -> list[str]:
    return [character for character in text.lower().strip() if character not in PUNCTUATION]
