"""Text that grows token by token: no half characters, and nothing of a stop string."""

from collections.abc import Callable, Sequence

from hanmo.generation.decode import HALF_A_CHARACTER

UNSURE = (HALF_A_CHARACTER, " ")  # ends of a text that may change: half of a character, and a blank before a mark
PENDING = 8  # tokens with such an end after which it is told as it is


class Pieces:
    """Ids to pieces of text. A piece is decoded behind the ids of the piece before it, which decide about blanks.

    The pieces depend on the ids alone, not on how many arrive at a time.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._ids: list[int] = []  # those of the last piece, and those behind it that have given no text yet
        self._shown = 0  # the number of the former
        self._before = ""  # their text

    def add(self, id_: int) -> str:
        """The text that becomes certain with the next token; often empty."""
        self._ids.append(id_)
        text = self._decode(self._ids)
        if text.endswith(UNSURE) and len(self._ids) - self._shown < PENDING:
            return ""
        return self._piece(text)

    def finish(self) -> str:
        """The rest, when no token follows."""
        return self._piece(self._decode(self._ids)) if len(self._ids) > self._shown else ""

    def _piece(self, text: str) -> str:
        if not text.startswith(self._before):  # a decoder that rewrites what stands before
            shared = next((at for at, pair in enumerate(zip(text, self._before)) if pair[0] != pair[1]), len(text))  # noqa: B905
            piece = text[shared:]
        else:
            piece = text[len(self._before) :]
        if piece.strip() or (piece and len(self._ids) > 4 * PENDING):
            self._ids = self._ids[self._shown :]
            self._shown, self._before = len(self._ids), self._decode(self._ids)
        elif piece:  # blanks at the beginning of what is decoded would be stripped
            self._shown, self._before = len(self._ids), text
        elif len(self._ids) - self._shown >= PENDING:
            del self._ids[self._shown :]  # special tokens, which have no text
        return piece


class StopStrings:
    """Text up to the first stop string that is complete; of those that end at the same character, the longest.

    Text is held back only as far as it may be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str], kept: bool = False):
        self._stops, self._kept = stops, kept  # ``kept``: the stop string is part of the text
        self._held = ""
        self.found: str | None = None

    def add(self, piece: str) -> str:
        """The text that is certain with this piece; empty once a stop string was found."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, start, self.found = min(ends)
            return text[: end if self._kept else start]
        held = next((size for size in range(self._longest(text), 0, -1) if self._opens(text[-size:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What is still held back, when no text follows."""
        held, self._held = self._held, ""
        return "" if self.found is not None else held

    def _longest(self, text: str) -> int:
        return min(len(text), max((len(stop) - 1 for stop in self._stops), default=0))

    def _opens(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
