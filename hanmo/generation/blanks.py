"""Fills several blanks of one text, for families that fill blanks."""

from collections.abc import Sequence
from typing import Any

from hanmo.families.base import OpenedModel
from hanmo.generation.decode import Generation, generate
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.rows import Context


def fill(
    opened: OpenedModel, contexts: Sequence[Context], settings: Settings, first: int = 0, **options: Any
) -> list[list[Generation]]:
    """One generation for every blank of each context, from left to right; each sees the answers before it.

    A context without blanks has one generation. ``first``: index of the first context among all prompts, for the draws.
    """
    answers: list[list[Generation]] = [[] for _ in contexts]
    waiting = dict(enumerate(contexts))
    while waiting:
        places = [Place(first + index, blank=len(answers[index])) for index in waiting]
        replies = generate(opened, list(waiting.values()), settings, places=places, **options)
        following = {}
        for (index, context), reply in zip(waiting.items(), replies, strict=True):
            answers[index].append(reply)
            following[index] = next_context(opened, context, reply)
        waiting = {index: context for index, context in following.items() if context is not None}
    return answers


def next_context(opened: OpenedModel, context: Context, reply: Generation) -> Context | None:
    """The context for the next blank after a reply; None if that was the last."""
    ids = opened.family.next_blank(context.ids, reply.ids)
    return None if ids is None else Context(ids, ids)
