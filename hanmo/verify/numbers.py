"""The verifier of numbers: which number a reply means."""

import re
from fractions import Fraction

from hanmo.verify.numerals import Number, numbers, plain_text
from hanmo.verify.texts import final

_MARK = re.compile(
    r"答案\s*(?:应该|应|就|便|即|最终|大约|约)*\s*(?:是|为|等于|[:=]|(?=\d))[\s是为:=约“\"]*|答\s*:\s*|####\s*"
    r"|answer\s*(?:is|[:=])[\s:=]*",
    re.I,
)
_CORRECTED = re.compile(r"不对|算错|错了|更正|纠正|重新|等等|再算")
_REFUSED = re.compile(r"(?:不是|而非|并非|不等于|不为|不能是|不可能是)\s*$")
_SENTENCE = re.compile(r"[。;!?\n]|\.(?!\d)")
_GOES_ON = re.compile(r"[^\d,;。]{0,3}[-+×÷*/=]")  # 3×4=12
_BRACKETS = re.compile(r"\([^()]*\)")


def number(reply: str, answer: str) -> bool | None:
    """Whether the reply means the number of the answer, compared exactly as fractions; None if the answer has none.

    Rule: the number in \\boxed{}; or the one behind the last 答案是, 答：, #### or "answer is"; or the last one. Numbers
    that are refused (不是13) do not count, those in brackets only if there are no others. 50% is 1/2 and not 50.
    """
    wanted = meant(answer)
    return None if wanted is None else meant(reply) == wanted


def meant(text: str) -> Fraction | None:
    """The number that a text means; None if it has none."""
    text = final(text)
    if (inner := boxed(text)) is not None:
        return _last(plain_text(inner))
    text = plain_text(text)
    marks, corrected = list(_MARK.finditer(text)), [found.end() for found in _CORRECTED.finditer(text)]
    if corrected and (not marks or marks[-1].start() < corrected[-1]):
        found = _last(text[corrected[-1] :])
        if found is not None:
            return found
    for mark in reversed(marks):
        found = _behind(text[mark.end() :])
        if found is not None:
            return found
    return _last(text)


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{}, whose braces may hold others."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]


def _behind(text: str) -> Fraction | None:
    """The number that a text begins with, or else the last one of its first sentence."""
    end = _SENTENCE.search(text)
    sentence = text[: end.start()] if end else text
    first = next(numbers(sentence), None)
    if first is not None and first.start <= 1 and not _GOES_ON.match(sentence, first.end):
        return first.value
    return _last(sentence)


def _last(text: str) -> Fraction | None:
    found = [one for one in numbers(text) if not _REFUSED.search(text[max(0, one.start - 8) : one.start])]
    brackets = [match.span() for match in _BRACKETS.finditer(text)]

    def outside(one: Number) -> bool:
        return not any(start <= one.start < end for start, end in brackets)

    chosen = [one for one in found if outside(one)] or found
    return chosen[-1].value if chosen else None
