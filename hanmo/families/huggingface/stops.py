"""Where any transformers model's replies end, by its chat template, tokenizer and configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hanmo.families.stops import CONFIG, GENERATION, Stop, collect, said_by_config

# Turns that no template holds by itself and none changes.
_ASKED, _SAID, _ASKED_AGAIN = "Qxqxq", "Rxrxr", "Qzqzq"
_BRACKETED = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def stops_of(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, Any]
) -> tuple[Stop, ...]:
    """The tokens that end a reply. The first is the one that rows predict: what ends an assistant's turn, if one is known.

    Args:
        generation: what generation_config.json says.
    """
    found = (
        (end_of_turn(tokenizer), "chat template"),
        (tokenizer.eos_token_id, "tokenizer's eos_token"),
        (_end_of_text(tokenizer), "tokenizer's sep_token"),
        (said_by_config(config, "eos_token_id"), CONFIG),
        (generation.get("eos_token_id"), GENERATION),
    )
    return collect(found, config, tokenizer)


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The separator where the tokenizer ends every text with it, as BERT's does, which has no eos_token."""
    separator = tokenizer.sep_token_id
    return separator if separator is not None and tokenizer.encode("一")[-1] == separator else None


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template puts right behind what the assistant says; None if there is none.

    It is looked for in a conversation that goes on: behind the last turn of all, some templates close the conversation
    with another token (Phi-3's), and others end a turn by nothing but the next one's first token (GLM-4's).
    """
    if not tokenizer.chat_template:
        return None
    talk = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}]
    for messages in ([*talk, {"role": "user", "content": _ASKED_AGAIN}], talk):
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        except (TemplateError, ValueError, TypeError):
            continue
        _, said, rest = text.rpartition(_SAID)
        if said and (token := _token_at_start(tokenizer, rest.lstrip())) is not None:
            return token
    return None


def _token_at_start(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The special token that a text begins with; one that is not marked as special counts where it stands in brackets."""
    special = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    if bracketed := _BRACKETED.match(text):
        special.add(bracketed[0])
    vocabulary = tokenizer.get_vocab()
    here = [token for token in special if token and text.startswith(token) and token in vocabulary]
    return vocabulary[max(here, key=len)] if here else None
