"""Where prompt and answer meet among ids: an answer is tokenised as it follows its prompt, not as a text of its own.

SentencePiece puts ``▁`` before a text by itself, byte-level tokenizers join a space to the word behind it, and a chat
template may write white space where an answer begins. A prompt always has the ids that it has alone, since a model is given
just those in generation; the ids that are learned or scored are those it would have to generate next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hanmo.errors import HanmoError

Message = dict[str, str]
ANCHORS = ("。", "a", "0", "\n", " ")  # of these texts at least one is never joined with what follows it


def plain(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, without the special tokens that the tokenizer adds around it."""
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []


def behind(tokenizer: Any, given: str, text: str) -> list[int]:
    """The ids of ``text`` as it follows ``given``.

    Where one token would span the boundary, ``given`` keeps its own ids and ``text`` is tokenised as it follows one of
    ``ANCHORS`` instead.
    """
    if not text:
        return []
    for before in (given, *ANCHORS):
        alone, whole = plain(tokenizer, before), plain(tokenizer, before + text)
        if whole[: len(alone)] == alone:
            return whole[len(alone) :]
    return plain(tokenizer, text)


def separator(tokenizer: Any) -> str:
    """The text between turns where there is no chat template, such that two turns and one joined turn differ in ids.

    A line break; where the tokenizer drops it or makes it a space, ``sep_token``, ``eos_token`` or a bar.
    """
    joined = [plain(tokenizer, text) for text in ("一二", "一 二")]
    for mark in ("\n", tokenizer.sep_token, tokenizer.eos_token, "|"):
        if mark and plain(tokenizer, f"一{mark}二") not in joined:
            return str(mark)
    return "\n"


@dataclass(frozen=True)
class TemplateForm:
    """How a chat template treats messages, found by rendering some.

    Attributes:
        system: it takes a system message.
        lead: white space that it writes between a prompt and the assistant's text; "" if it writes anything else there.
        strips: it strips the assistant's text.
    """

    system: bool
    lead: str
    strips: bool

    @classmethod
    def of(cls, render: Callable[[list[Message], bool], str]) -> TemplateForm:
        """``render(messages, ask)`` gives the rendered text; ``ask`` adds the generation prompt."""
        user = {"role": "user", "content": "甲"}
        try:
            system = "丙丁" in render([{"role": "system", "content": "丙丁"}, user], True)
        except HanmoError:
            system = False
        asked, said = (
            render([user], True),
            [render([user, {"role": "assistant", "content": text}], False) for text in ("乙", "  乙  ")],
        )
        rests = [text.removeprefix(asked) for text in said]
        lead = rests[0].partition("乙")[0]
        return cls(system, lead if lead.isspace() and said[0].startswith(asked) else "", "  乙  " not in rests[1])

    def messages(self, system: str, turns: list[Message]) -> list[Message]:
        """Messages with the system text: as a message of its own, or before the text of the first user turn."""
        if not system:
            return turns
        if self.system:
            return [{"role": "system", "content": system}, *turns]
        place = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), None)
        if place is None:
            return turns
        warnings.warn(
            "the chat template has no system role: the system text stands before the first turn", stacklevel=2
        )
        first = {"role": "user", "content": f"{system}\n\n{turns[place]['content']}"}
        return [*turns[:place], first, *turns[place + 1 :]]

    def reply(self, given: str, prefix: str, answer: str) -> tuple[str, str]:
        """The rendered prompt followed by ``prefix`` (the given beginning of the answer), and the rest of the answer."""
        if prefix:
            return given + self.lead + prefix, answer.rstrip() if self.strips else answer
        answer = answer.strip() if self.strips else answer
        return given, self.lead + answer if answer else ""
