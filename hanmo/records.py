"""The records hanmo reads and writes: what one line of data means, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """Running text, for pretraining and perplexity."""

    text: str
    where: str = field(default="", compare=False)  # "file:line", for messages


@dataclass(frozen=True)
class Dialogue:
    """Turns that alternate between the user and the system. The last turn is what the model is to say.

    ``ids``: in a chat, the ids of a turn that the model has said, so that they are never made from its text again;
    one entry per turn, None where there is only text.
    """

    turns: tuple[str, ...]
    system: str = ""
    where: str = field(default="", compare=False)
    ids: tuple[tuple[int, ...] | None, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class PromptResponse:
    """One prompt and the response to learn. ``prefix`` opens the response and is given, not learned ("答：")."""

    prompt: str
    response: str
    prefix: str = ""
    system: str = ""
    where: str = field(default="", compare=False)


Record = Text | Dialogue | PromptResponse
