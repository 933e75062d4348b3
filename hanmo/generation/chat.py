"""A conversation with a model: what was said, what the model sees of it, and its replies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.draws import Sampler
from hanmo.generation.settings import Settings
from hanmo.generation.text import GrowingText, OnText
from hanmo.records import Dialogue, write_records
from hanmo.rows import Context


@dataclass(frozen=True)
class Reply:
    """A reply: its text and ids (without the stop token), what the model saw, and whether it stopped by itself."""

    text: str
    ids: tuple[int, ...]
    context: Context
    finished: bool


class ChatSession:
    """A conversation. What the model has said stays as the ids it said, which are not always those of its text.

    Args:
        limit: tokens of the conversation that the model is shown; how a longer one is cut is the family's business.
        system: a system text that goes before the conversation.

    Attributes:
        settings: of the next reply; may be changed at any time. ``seed`` counts when the session or ``reseed`` begins.
        turns: what was said since the last ``clear``, the user first.
    """

    def __init__(self, opened: OpenedModel, settings: Settings, limit: int, system: str = ""):
        self.opened = opened
        self.settings = settings
        self.limit = limit
        self.system = system
        self.turns: list[str] = []
        self._ids: list[tuple[int, ...] | None] = []
        self._earlier: list[Dialogue] = []
        self._random = Random(settings.seed)

    @property
    def streams(self) -> bool:
        """Whether a reply can be shown while it is made: with beams nothing is certain before the end."""
        return self.settings.num_beams == 1

    def say(self, text: str, on_text: OnText | None = None, sampler: Sampler | None = None) -> Reply:
        """Answer the user. Ctrl-C ends the reply where it is; what there is of it joins the conversation.

        Args:
            on_text: called with each piece of the reply as soon as it is certain.
            sampler: replaces the random draws.
        """
        record = Dialogue((*self.turns, text), self.system, ids=(*self._ids, None))
        context = self.opened.family.context(record, self.limit)
        settings = self.settings.change(seed=self._random.getrandbits(63))
        growing = GrowingText(self.opened.family.decode, on_text)
        [said] = generate(self.opened, [context], settings, growing.take, sampler, keep_on_interrupt=True)
        reply = Reply(growing.finish(said.ids), said.ids, context, said.finished)
        self.turns += [text, reply.text]
        self._ids += [None, reply.ids]
        return reply

    def clear(self) -> None:
        """Begin a new conversation."""
        if self.turns:
            self._earlier.append(Dialogue(tuple(self.turns), self.system))
        self.turns, self._ids = [], []

    def reseed(self, seed: int | None) -> None:
        """Draw from this seed on, in a new conversation."""
        self.settings = self.settings.change(seed=seed)
        self._random = Random(seed)
        self.clear()

    def save(self, path: str | Path) -> int:
        """Write all conversations of the session as dialogue records, one a line; returns how many."""
        current = [Dialogue(tuple(self.turns), self.system)] if self.turns else []
        return write_records(path, [*self._earlier, *current])
