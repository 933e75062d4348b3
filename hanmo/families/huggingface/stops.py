"""The tokens that end a turn and a text, by a model's chat template and tokenizer."""

import re

from transformers import PreTrainedTokenizerBase

from hanmo.errors import UnsupportedError
from hanmo.families.huggingface.templates import render_template

# Turns that no template contains by itself or changes.
_QUESTION, _ANSWER, _NEXT_QUESTION = "Qxqxq", "Rxrxr", "Qzqzq"
_BRACKETED = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The separator if the tokenizer ends every text with it, as BERT's does, which has no eos_token."""
    separator = tokenizer.sep_token_id
    return separator if separator is not None and tokenizer.encode("一")[-1] == separator else None


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template puts right after the assistant's text; None if there is none.

    A conversation with a further user turn is rendered first: some templates close a conversation with another token
    (Phi-3's), and in others the next turn's first token ends a turn (GLM-4's).
    """
    if not tokenizer.chat_template:
        return None
    talk = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    for messages in ([*talk, {"role": "user", "content": _NEXT_QUESTION}], talk):
        try:
            text = render_template(tokenizer, messages)
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
