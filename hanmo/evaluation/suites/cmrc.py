"""The official CMRC 2018 metric (Cui et al. 2019, arXiv:1810.07366): longest common run of tokens, and equality.

Texts are lower-cased, stripped and freed of the official list of punctuation, character by character: its ``……`` is two
characters and so takes nothing away. A Chinese character is a token; other text is cut into words.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
CHINESE = re.compile(r"([一-龥])")
# The rules of the Penn Treebank as nltk 3.10 applies them to small letters without the punctuation above: (pattern,
# replacement), one after the other; then white space separates the words.
_WORDS = [
    (r"([«‘„])", r" \1 "),
    (r"^\"", " `` "),
    (r"([ (\[{<])(?:\"|'')", r"\1 `` "),  # quotes that open
    (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
    (r"([^.])\.([])}>\"' »]*)\s*$", r"\1 . \2 "),  # the full stop at the end
    (r",(\D|$)", r" , \1"),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&\u2012-\u2015?!]", r" \g<0> "),
    (r"([^'])'(?= )", r"\1 '"),
    (r"[][(){}<>]", r" \g<0> "),
    (r"^|$", " "),
    (r"»", " » "),
    (r"''|\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[smd]?) ", r"\1 \2 "),
    (r"([^' ])('(?:ll|re|ve)|n't) ", r"\1 \2 "),
    (r"\b(?:(can)(not)|(d)('ye)|(gim)(me)|(gon)(na)|(got)(ta)|(lem)(me)|(more)('n)|(wan)(na)(?=\s))\b", r" \1\3\5\7\9\11\13\15 \2\4\6\8\10\12\14\16 "),
    (r" ('t)(is)\b", r" \1 \2 "),
    (r" ('t)(was)\b", r" \1 \2 "),
]  # fmt: skip
WORDS = [(re.compile(found), put) for found, put in _WORDS]
# nltk cuts into sentences first, by a trained model, since only the last full stop of a sentence is a word. Here a sentence
# ends at a full stop and white space, except after an initial, a number, a dotted or one of these abbreviations.
_SHORT = "mr|mrs|ms|dr|prof|st|jr|sr|inc|co|corp|ltd|vs|gen|col|lt|sgt|capt|sen|rep|gov|jan|feb|aug|sept|oct|nov|dec"
_SENTENCE_END = re.compile(rf"(?:^|(?<=\s))(?!(?:{_SHORT}|\w|\d+|\S*\.\S+)\.\s)\S*\.(?=\s)")


def tokens(text: str) -> list[str]:
    """Characters and words without punctuation.

    >>> tokens("18小时，HBO's")
    ['18', '小', '时', 'hbo', "'s"]
    """
    return [word for piece in CHINESE.split(_kept(text)) for word in words(piece)]


def words(text: str) -> list[str]:
    """The words of a run of other characters than Chinese ones.

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
