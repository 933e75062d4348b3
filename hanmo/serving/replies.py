"""A reply as it grows: from the ids of updates to text, tokens with log-probabilities, and the reason of its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from hanmo.serving.job import Update
from hanmo.serving.plan import Options
from hanmo.serving.served import Served
from hanmo.serving.text import Pieces, StopStrings


@dataclass(frozen=True)
class Token:
    """A token with its log-probability; None where nothing predicts it.

    Attributes:
        offset: characters of the text before it.
        best: the most likely tokens in its place, with their log-probabilities.
    """

    id: int
    logprob: float | None
    best: list[tuple[int, float]]
    offset: int


@dataclass
class Piece:
    """What an update adds to a reply."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    stop: str | int | None = None  # the stop string or stop token id of the request that has ended the reply
    end: Token | None = None  # the model's own stop token


class Transcript:
    """One reply.

    Attributes:
        ids: the tokens that its text was made of.
        answer: those of the last blank; all, where there are no blanks.
    """

    def __init__(self, served: Served, options: Options):
        self._served, self._options = served, options
        self._offset = 0
        self.ids: list[int] = []
        self.text = ""
        self._begin()

    def _begin(self) -> None:
        self.answer: list[int] = []
        self.finish: str | None = None
        self._pieces = Pieces(self._served.decode)
        self._strings = StopStrings(self._options.stops, self._options.kept_stop)

    def separate(self) -> Piece:
        """The line break between the answers to two blanks of one text."""
        self._begin()
        self._offset += 1
        self.text += "\n"
        return Piece("\n")

    def take(self, update: Update) -> Piece:
        """What an update adds; nothing behind a stop string or token of the request."""
        piece = Piece()
        bests = update.best or ([],) * len(update.logprobs)
        for place, id_ in enumerate(update.ids):
            if id_ in self._options.stop_ids and len(self.ids) >= self._options.min_tokens:
                piece.finish, piece.stop = "stop", id_
                break
            self.ids.append(id_)
            self.answer.append(id_)
            if self._options.alternatives is not None:
                piece.tokens.append(Token(id_, update.logprobs[place], bests[place], self._offset))
            self._read(self._pieces.add(id_), piece)
            if piece.finish:
                break
        if piece.finish is None and update.finish is not None:
            self._read(self._pieces.finish(), piece)
        if piece.finish is None and update.finish is not None:
            piece.finish = update.finish
            if self._options.alternatives is not None and len(update.logprobs) > len(update.ids):
                stop_id = self._served.stop_ids[0] if update.stop is None else update.stop
                piece.end = Token(stop_id, update.logprobs[-1], bests[-1], self._offset)
        if piece.finish is not None and piece.stop is None:
            piece.text += self._strings.finish()
        self.finish = piece.finish
        self.text += piece.text
        return piece

    def _read(self, text: str, piece: Piece) -> None:
        """Add text behind the search for stop strings, which begins after ``min_tokens``."""
        self._offset += len(text)
        early = len(self.ids) <= self._options.min_tokens
        piece.text += text if early else self._strings.add(text)
        if self._strings.found is not None:
            piece.finish, piece.stop = "stop", self._strings.found
