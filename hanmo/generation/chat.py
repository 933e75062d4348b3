"""A conversation with a model."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

from hanmo.families.base import OpenedModel
from hanmo.generation.decode import GrowingText, OnText, generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, write_records
from hanmo.rows import Context


@dataclass(frozen=True)
class Reply:
    """A reply without its stop token, and the context that the model saw."""

    text: str
    ids: tuple[int, ...]
    context: Context
    finished: bool


class ChatSession:
    """A conversation. Replies are stored as the generated ids, which need not be those of their text tokenised again.

    Attributes:
        settings: of the next reply; may be changed at any time. ``seed`` takes effect at the beginning and in ``reseed``.
        limit: tokens of the conversation that the model sees, fewer where its positions leave no room for the reply; the
            family cuts a longer one.
        rows: as in ``generate``.
        turns: since the last ``clear``, the user's first.
    """

    def __init__(self, opened: OpenedModel, settings: Settings, limit: int, system: str = "", rows: int | None = None):
        self.opened, self.settings, self.limit, self.system, self.rows = opened, settings, limit, system, rows
        self.turns: list[str] = []
        self._ids: list[tuple[int, ...] | None] = []
        self._earlier: list[Dialogue] = []
        self._random = Random(settings.seed)

    @property
    def streams(self) -> bool:
        """Whether a reply can be shown while it is generated: with beams nothing is certain before the end."""
        return self.settings.num_beams == 1

    def reply(self, text: str, on_text: OnText | None = None) -> Reply:
        """Answer the user, and call ``on_text`` with each piece of the reply as soon as it is certain.

        Ctrl-C ends the reply where it is; the tokens so far join the conversation.
        """
        record = Dialogue((*self.turns, text), self.system, ids=(*self._ids, None))
        family, longest = self.opened.family, self.settings.max_new_tokens
        context = family.context(record, family.fitting(self.limit, longest)[0])
        longest = family.fitting(len(context.ids), longest)[1]
        settings = self.settings.change(seed=self._random.getrandbits(63), max_new_tokens=longest)
        growing = GrowingText(family.decode, on_text)
        [generated] = generate(self.opened, [context], settings, growing.take, keep_on_interrupt=True, rows=self.rows)
        reply = Reply(growing.finish(generated.ids), generated.ids, context, generated.finished)
        self.turns += [text, reply.text]
        self._ids += [None, reply.ids]
        return reply

    def clear(self) -> None:
        """Start a new conversation."""
        if self.turns:
            self._earlier.append(Dialogue(tuple(self.turns), self.system))
        self.turns, self._ids = [], []

    def reseed(self, seed: int | None) -> None:
        """Start a new conversation with this seed."""
        self.settings = self.settings.change(seed=seed)
        self._random = Random(seed)
        self.clear()

    def save(self, path: str | Path) -> int:
        """Write all conversations of the session as dialogue records, one a line; returns their number."""
        current = [Dialogue(tuple(self.turns), self.system)] if self.turns else []
        return write_records(path, [*self._earlier, *current])
