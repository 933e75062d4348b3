"""Arguments of a chat template: values that it reads besides the conversation, such as ``enable_thinking``."""

import inspect
import json
import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hanmo.errors import ConfigError
from hanmo.families.huggingface.templates import template_name, template_variables

Value = str | int | float | bool
#: names that stand for the conversation and the loop over it, or for options of transformers' own functions
RESERVED = frozenset({
    "messages", "loop", "index", "index0",
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *inspect.signature(render_jinja_template).parameters,
})  # fmt: skip


def argument_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The arguments that a chat template uses; raises as ``render_template``."""
    own = RESERVED.union(tokenizer.special_tokens_map, tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
    return [name for name in template_variables(tokenizer) if name not in own]


def checked_arguments(tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> dict[str, Value]:
    """Arguments as the template gets them; ConfigError for a name that it does not use, or a value that is no scalar."""
    used, where = argument_names(tokenizer), template_name(tokenizer)
    for name, value in given.items():
        if name in RESERVED.union(tokenizer.special_tokens_map, tokenizer.SPECIAL_TOKENS_ATTRIBUTES):
            raise ConfigError(f"template argument {name!r}: hanmo gives the template this itself; leave it out")
        if name not in used:
            known = f"those it uses: {', '.join(used)}" if used else "it uses none"
            raise ConfigError(f"{where} uses no argument {name!r}; {known}")
        finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(value, Value) or not finite:
            kind = type(value).__name__ if finite else str(value)
            raise ConfigError(
                f"template argument {name}: found {kind}; expected text (a date in quotes), a finite number, true or false"
            )
    return dict(given)


def described(arguments: Mapping[str, Any]) -> str:
    """
    >>> described({"enable_thinking": False, "date": "1 May"})
    'date="1 May", enable_thinking=false'
    """
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sorted(arguments.items()))
