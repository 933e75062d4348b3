"""Repairs text that word-piece tokenizers decode."""

from __future__ import annotations

import re

# Ideographs and kana, with the punctuation and full-width forms that stand among them.
_CJK = "\u2e80-\u303f\u3040-\u30ff\u3100-\u31bf\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"
_CJK += "\u2014\u2018\u2019\u201c\u201d\u2026"  # dashes, quotation marks and dots of Chinese text
_BLANK = re.compile(f"(?<=[{_CJK}]) +| +(?=[{_CJK}])")


def without_blanks(text: str) -> str:
    """Without the blanks beside Chinese and Japanese characters and their punctuation; those between other words stay."""
    return _BLANK.sub("", text)
