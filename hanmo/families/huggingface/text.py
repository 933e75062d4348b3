"""Texts and their ids: a reply is tokenised as it follows its prompt, not as a text of its own.

SentencePiece puts ``▁`` before a text, byte-level tokenizers join a space to the word behind it, and a chat template may
write white space before a reply. A prompt keeps its own ids; a reply's are those that the model has to generate next.
"""

import re
from collections.abc import Callable
from typing import Any

ANCHORS = ("。", "a", "0", "\n", " ")  # at least one of these texts is never joined with what follows it
# Ideographs and kana, with the punctuation and full-width forms that stand among them.
_CJK = "\u2e80-\u303f\u3040-\u30ff\u3100-\u31bf\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"
_CJK += "\u2014\u2018\u2019\u201c\u201d\u2026"  # dashes, quotation marks and dots of Chinese text
_BLANK = re.compile(f"(?<=[{_CJK}]) +| +(?=[{_CJK}])")


def behind(encode: Callable[[str], list[int]], given: str, text: str) -> list[int]:
    """The ids of ``text`` as it follows ``given``, which keeps its own ids.

    Where one token would span the boundary, ``text`` is tokenised as it follows one of ``ANCHORS`` instead.
    """
    if not text:
        return []
    for before in (given, *ANCHORS):
        alone, whole = encode(before), encode(before + text)
        if whole[: len(alone)] == alone:
            return whole[len(alone) :]
    return encode(text)


def separator(encode: Callable[[str], list[int]], tokenizer: Any) -> str:
    """The text between turns without a chat template: the first of these marks that leaves a trace in the ids."""
    joined = [encode(text) for text in ("一二", "一 二")]
    for mark in ("\n", tokenizer.sep_token, tokenizer.eos_token, "|"):
        if mark and encode(f"一{mark}二") not in joined:
            return str(mark)
    return "\n"


def without_blanks(text: str) -> str:
    """The text without spaces beside Chinese and Japanese characters and punctuation, as word-piece decoders put them."""
    return _BLANK.sub("", text)
