"""The official CMRC 2018 metric (Cui et al. 2019, arXiv:1810.07366): longest common run of tokens, and equality.

Texts are lower-cased, stripped and freed of the official list of punctuation, character by character: its ``……`` is two
characters and so takes nothing away. A Chinese character is a token; other text is cut into words.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from hanmo.files import package_yaml

PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
CHINESE = re.compile(r"([一-龥])")
_RULES = package_yaml("hanmo.evaluation.suites", "cmrc.yaml")
WORDS = [(re.compile(found), put) for found, put in _RULES["words"]]
_SHORT = "|".join(_RULES["abbreviations"])
_SENTENCE_END = re.compile(rf"(?:^|(?<=\s))(?!(?:{_SHORT}|\w|\d+|\S*\.\S+)\.\s)\S*\.(?=\s)")


def tokens(text: str) -> list[str]:
    """Characters and words without punctuation.

    >>> tokens("18小时，HBO's")
    ['18', '小', '时', 'hbo', "'s"]
    """
    return [word for piece in CHINESE.split(_kept(text)) for word in words(piece)]


def words(text: str) -> list[str]:
    """The words of a text without Chinese characters, by the rules of cmrc.yaml.

    >>> words("that isn't (all).")
    ['that', 'is', "n't", '(', 'all', ')', '.']
    """
    found, begin = [], 0
    for end in (*(match.end() for match in _SENTENCE_END.finditer(text)), len(text)):
        sentence = text[begin:end].strip()
        for rule, put in WORDS:
            sentence = rule.sub(put, sentence)
        found += sentence.split()
        begin = end
    return found


def exact(prediction: str, references: Sequence[str]) -> bool:
    """Whether the prediction equals a reference, punctuation and case aside."""
    return _kept(prediction) in map(_kept, references)


def scores(prediction: str, references: Sequence[str]) -> dict[str, list[float]]:
    """F1 and equality, as ``QuestionResult.scores`` has them."""
    return {"f1": [f1(prediction, references)], "em": [float(exact(prediction, references))]}


def f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1 over the references; the common part is the longest run of tokens in both."""
    predicted, best = tokens(prediction), 0.0
    for expected in map(tokens, references):
        if common := common_run(predicted, expected):
            best = max(best, 2 * common / (len(predicted) + len(expected)))
    return best


def common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest run of tokens that stands in both."""
    return SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size


def _kept(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in PUNCTUATION)
