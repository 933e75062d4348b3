"""Personal data in Chinese text: telephone numbers, identity cards, bank cards, e-mail, QQ and WeChat.

Digits may be full-width, in Chinese or apart, as people write them who want to slip through a filter. Numbers with a
check digit are checked, so that an order number is not taken for an identity card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_DIGITS = dict(zip("〇零一二三四五六七八九幺", "001234567891", strict=True))
_FULL_WIDTH = {0xFF10 + n: str(n) for n in range(10)}
_APART = r"[\s\-.·_]?"  # what may stand between two digits
_PATTERNS = {
    "phone": re.compile(
        rf"(?<!\d)(?<!\d[-.])(?:\+?86{_APART})?1{_APART}[3-9](?:{_APART}\d){{9}}(?!\d)"
        r"|(?<![\d.])0(?:10|2\d|[3-9]\d{2})[-\s)）]{1,2}[2-9]\d{6,7}(?!\d)|(?<![\d.])[48]00-?\d{3}-?\d{4}(?!\d)"
    ),
    "id": re.compile(
        r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
    ),
    "card": re.compile(rf"(?<!\d)[3-6](?:{_APART}\d){{14,18}}(?!\d)"),
    "email": re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+\-]*\s?[@＠]\s?[A-Za-z0-9][A-Za-z0-9.\-]*\.[A-Za-z]{2,}"),
    "qq": re.compile(r"(?:[qQ]\s?[qQ]|[扣叩]{2}|企鹅)(?:号码|号|群)?(?:[\s:：是为加+]|\W){0,4}[1-9]\d{4,10}(?!\d)"),
    "wechat": re.compile(
        r"(?:微信|薇信|威信|徽信|v信|vx|wx|weixin|加v|加薇)(?:号码|号|ID)?(?:[\s:：是为+]|\W){0,4}[a-z0-9][a-z0-9_\-]{4,19}(?![a-z0-9])",
        re.IGNORECASE | re.ASCII,
    ),
}
KINDS = tuple(_PATTERNS)
MARKS = {"phone": "<电话>", "id": "<身份证>", "card": "<银行卡>", "email": "<邮箱>", "qq": "<QQ>", "wechat": "<微信>"}
_CHINESE_RUN = re.compile(r"[〇零一二三四五六七八九幺\d]{7,}")


def found(text: str, kinds: Sequence[str] = KINDS) -> tuple[str, str] | None:
    """Kind and text of the first piece of personal data, or None."""
    return next(((kind, text[start:end]) for kind, start, end in _spans(text, kinds)), None)


def masked(text: str, kinds: Sequence[str] = KINDS) -> str:
    """Text with a mark in the place of each piece of personal data."""
    spans = sorted(_spans(text, kinds), key=lambda span: span[1], reverse=True)
    last = len(text) + 1
    for kind, start, end in spans:
        if end <= last:
            text, last = text[:start] + MARKS[kind] + text[end:], start
    return text


def _spans(text: str, kinds: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    plain = _plain(text)
    for kind in kinds:
        for hit in _PATTERNS[kind].finditer(plain):
            if (kind == "id" and not _is_identity(hit.group())) or (kind == "card" and not _is_card(hit.group())):
                continue
            yield kind, hit.start(), hit.end()


def _plain(text: str) -> str:
    """Same length, with digits as ASCII; Chinese ones only in long runs, for 一 and 二 are words."""
    text = text.translate(_FULL_WIDTH)
    return _CHINESE_RUN.sub(lambda run: "".join(_DIGITS.get(char, char) for char in run.group()), text)


def _is_identity(number: str) -> bool:
    """The check character of GB 11643: the weights are powers of 2 modulo 11."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _is_card(number: str) -> bool:
    """The check digit of Luhn."""
    digits = [int(char) for char in number if char.isdigit()][::-1]
    return len(set(digits)) > 2 and sum(digits[::2] + [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]) % 10 == 0
