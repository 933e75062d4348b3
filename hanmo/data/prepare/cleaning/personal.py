"""Personal data in Chinese text, such as telephone numbers, whose digits may be full-width, in Chinese or apart."""

import re
from collections.abc import Iterator, Sequence

from hanmo.files import package_yaml

_CHINESE = str.maketrans("〇零一二三四五六七八九幺", "001234567891")
_FULL_WIDTH = str.maketrans("０１２３４５６７８９", "0123456789")
_KNOWN = package_yaml("hanmo.data.prepare.cleaning", "personal.yaml")
_PATTERNS = {kind: re.compile("|".join(known["patterns"])) for kind, known in _KNOWN.items()}
KINDS = tuple(_PATTERNS)
MARKS = {kind: known["mark"] for kind, known in _KNOWN.items()}
_CHINESE_RUN = re.compile(r"[〇零一二三四五六七八九幺\d]{7,}")


def found(text: str, kinds: Sequence[str] = KINDS) -> tuple[str, str] | None:
    """Kind and text of the first piece of personal data, or None."""
    return next(((kind, text[start:end]) for kind, start, end in _spans(text, kinds)), None)


def masked(text: str, kinds: Sequence[str] = KINDS) -> str:
    """The text with a mark in the place of each piece of personal data."""
    spans = sorted(_spans(text, kinds), key=lambda span: span[1], reverse=True)
    last = len(text) + 1
    for kind, start, end in spans:
        if end <= last:
            text, last = text[:start] + MARKS[kind] + text[end:], start
    return text


def _spans(text: str, kinds: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    # Digits as ASCII; Chinese ones only in long runs, since 一 and 二 are also words. The length stays the same.
    plain = _CHINESE_RUN.sub(lambda run: run.group().translate(_CHINESE), text.translate(_FULL_WIDTH))
    for kind in kinds:
        for hit in _PATTERNS[kind].finditer(plain):
            # so that an order number is not taken for an identity card
            if (kind == "id" and not _is_identity(hit.group())) or (kind == "card" and not _is_card(hit.group())):
                continue
            yield kind, hit.start(), hit.end()


def _is_identity(number: str) -> bool:
    """The check character of GB 11643: the weights are powers of 2 modulo 11."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _is_card(number: str) -> bool:
    """The check digit of Luhn."""
    digits = [int(char) for char in number if char.isdigit()][::-1]
    return len(set(digits)) > 2 and sum(digits[::2] + [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]) % 10 == 0
