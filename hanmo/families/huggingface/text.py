"""Texts and their ids: a reply is tokenised as its prompt's continuation, and a token ends each turn and text.

SentencePiece puts ``▁`` before a text, byte-level tokenizers join a space to the word behind it, and a chat template may
write white space before a reply. A prompt keeps its own ids; a reply's are those that the model has to generate next.
"""

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from hanmo.errors import UnsupportedError
from hanmo.families.base import Family
from hanmo.families.huggingface.templates import CLOSE, OPEN, Message
from hanmo.records import Dialogue

ANCHORS = ("。", "a", "0", "\n", " ")  # at least one of these texts never merges with the text after it
# Ideographs and kana, with the punctuation and full-width forms that stand among them.
_CJK = "\u2e80-\u303f\u3040-\u30ff\u3100-\u31bf\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"
_CJK += "\u2014\u2018\u2019\u201c\u201d\u2026"  # dashes, quotation marks and dots of Chinese text
_BLANK = re.compile(f"(?<=[{_CJK}]) +| +(?=[{_CJK}])")
# Turns that no template contains by itself or changes.
_QUESTION, _ANSWER, _NEXT_QUESTION = "Qxqxq", "Rxrxr", "Qzqzq"
_BRACKETED = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def behind(encode: Callable[[str], list[int]], given: str, text: str) -> list[int]:
    """The ids of ``text`` behind ``given``, which keeps its ids; behind an anchor if one token would span the boundary."""
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


def spoken(family: Family, record: Dialogue) -> tuple[str, ...]:
    """The turns of a dialogue, in generated ones the marks of reasoning too that are special tokens, which no text shows."""
    added = family.tokenizer.added_tokens_decoder.items()
    marks = {id_: str(token) for id_, token in added if token.special and str(token) in (OPEN, CLOSE)}
    if not marks or not record.ids:
        return record.turns

    def said(ids: tuple[int, ...]) -> str:
        return "".join(mark or family.decode(list(piece)) for mark, piece in groupby(ids, marks.get))

    return tuple(text if ids is None else said(ids) for text, ids in zip(record.turns, record.ids, strict=True))


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The separator if the tokenizer ends every text with it, as BERT's does, which has no eos_token."""
    mark = tokenizer.sep_token_id
    return mark if mark is not None and tokenizer.encode("一")[-1] == mark else None


def end_of_turn(tokenizer: PreTrainedTokenizerBase, render: Callable[[list[Message]], str]) -> int | None:
    """The token that the chat template puts right after the assistant's text; None if there is none.

    A conversation with a further user turn is rendered first: some templates close a conversation with another token
    (Phi-3's), and in others the next turn's first token ends a turn (GLM-4's).
    """
    if not tokenizer.chat_template:
        return None
    talk = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    for messages in ([*talk, {"role": "user", "content": _NEXT_QUESTION}], talk):
        try:
            text = render(messages)
        except UnsupportedError:
            continue
        _, answer, rest = text.rpartition(_ANSWER)
        if answer and (token := _token_at_start(tokenizer, rest.lstrip())) is not None:
            return token
    return None


def _token_at_start(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The special token that a text begins with; a token in brackets counts even if it is not marked as special."""
    special = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    if bracketed := _BRACKETED.match(text):
        special.add(bracketed[0])
    vocabulary = tokenizer.get_vocab()
    here = [token for token in special if token and text.startswith(token) and token in vocabulary]
    return vocabulary[max(here, key=len)] if here else None
