"""Text of a reply, piece by piece, while its tokens arrive."""

from collections.abc import Callable, Sequence

OnText = Callable[[str], None]
HALF_A_CHARACTER = "\ufffd"  # the text of an incomplete byte sequence


class GrowingText:
    """Passes the text of a reply on, piece by piece.

    ``decode`` makes text of ids; ``on_text`` is called with each piece once it is certain, if it is given.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], on_text: OnText | None):
        self._decode = decode
        self._on_text = on_text
        self._ids: list[int] = []
        self._shown = ""

    def take(self, index: int, token: int) -> None:
        """The next token; ``index``, of the reply in its batch, is not used."""
        self._ids.append(token)
        if self._on_text is not None:
            self._show(self._decode(self._ids), certain=False)

    def finish(self, ids: Sequence[int]) -> str:
        """Pass on the rest of the text of all ids, and return the whole text."""
        text = self._decode(ids)
        self._show(text, certain=True)
        return text

    def _show(self, text: str, certain: bool) -> None:
        if self._on_text is None or (text.endswith(HALF_A_CHARACTER) and not certain):
            return
        if not text.startswith(self._shown):  # the decoder changed earlier text: show it again, once it is certain
            if not certain:
                return
            self._on_text("\n")
            self._shown = ""
        piece, self._shown = text[len(self._shown) :], text
        if piece:
            self._on_text(piece)
