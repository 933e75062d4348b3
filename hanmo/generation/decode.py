"""Replies to contexts, to the blanks of a text, and the text of a reply while it grows."""

from collections.abc import Callable, Sequence

from hanmo.families.base import OpenedModel
from hanmo.generation.beam import Generation
from hanmo.generation.draws import Place
from hanmo.generation.engine import Engine
from hanmo.generation.settings import Settings
from hanmo.nn.batching import batch_groups
from hanmo.nn.row_model import evaluating
from hanmo.rows import Context

OnToken = Callable[[int, int], None]  # index of the context, token
OnText = Callable[[str], None]
HALF_A_CHARACTER = "\ufffd"  # the text that an incomplete byte sequence decodes to


def generate(
    opened: OpenedModel,
    contexts: Sequence[Context],
    settings: Settings,
    on_token: OnToken | None = None,
    keep_on_interrupt: bool = False,
    places: Sequence[Place] | None = None,
    rows: int | None = None,
) -> list[Generation]:
    """The replies to all contexts, in order, decoded as one batch.

    Args:
        on_token: called with each token as it is drawn (not in beam search, where nothing is certain before the end).
        keep_on_interrupt: Ctrl-C ends decoding and returns the tokens so far, instead of being raised.
        places: identity of each reply, on which its random draws depend; default: its index in ``contexts``.
        rows: decode exactly so many rows at a time; each reply then has the same bits in any company. See ``Engine``.
    """
    places = places or [Place(number) for number in range(len(contexts))]
    found = [Generation((), (), 0.0, False)] * len(contexts)
    together = batch_groups(opened.network, [len(context.ids) for context in contexts]) if contexts else []
    waves = [[chosen] for chosen in together] if rows is None else [[[number] for number in range(len(contexts))]]
    engine = Engine(opened, rows=rows)
    with evaluating(opened.network):
        try:
            for wave in waves:
                _decode(engine, wave, contexts, settings, places, found, on_token)
        except KeyboardInterrupt:
            if not keep_on_interrupt:
                raise
    return found


def _decode(
    engine: Engine,
    wave: Sequence[Sequence[int]],
    contexts: Sequence[Context],
    settings: Settings,
    places: Sequence[Place],
    found: list[Generation],
    on_token: OnToken | None,
) -> None:
    """Decode groups of contexts, given by their indices, into ``found``; what there is on Ctrl-C, too."""
    groups = {
        engine.add([contexts[number] for number in chosen], settings, [places[number] for number in chosen]): chosen
        for chosen in wave
    }
    try:
        while not engine.idle:
            for group in engine.step():
                if group.error is not None:
                    raise group.error
                if on_token is not None:
                    for place, token in group.drawn:
                        on_token(groups[group][place], token)
    finally:
        for group, chosen in groups.items():
            for number, reply in zip(chosen, group.results(), strict=True):
                found[number] = reply


def fill(
    opened: OpenedModel, contexts: Sequence[Context], settings: Settings, first: int = 0, rows: int | None = None
) -> list[list[Generation]]:
    """One generation for every blank of each context, from left to right; each sees the answers before it.

    A context without blanks has one generation. ``first``: index of the first context among all prompts, for the draws.
    ``rows``: as in ``generate``.
    """
    answers: list[list[Generation]] = [[] for _ in contexts]
    waiting = dict(enumerate(contexts))
    while waiting:
        places = [Place(first + index, blank=len(answers[index])) for index in waiting]
        replies = generate(opened, list(waiting.values()), settings, places=places, rows=rows)
        for index, reply in zip(list(waiting), replies, strict=True):
            answers[index].append(reply)
            following = next_context(opened, waiting.pop(index), reply)
            if following is not None:
                waiting[index] = following
    return answers


def next_context(opened: OpenedModel, context: Context, reply: Generation) -> Context | None:
    """The context for the next blank after a reply; None if that was the last."""
    ids = opened.family.next_blank(context.ids, reply.ids)
    return None if ids is None else Context(ids, ids)


class GrowingText:
    """The text of a reply, made by ``decode``; ``on_text``, if given, is called with each piece once it is certain."""

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
        changed = not text.startswith(self._shown)  # earlier text has changed: show it all again, once it is certain
        if self._on_text is None or (not certain and (changed or text.endswith(HALF_A_CHARACTER))):
            return
        if changed:
            self._on_text("\n")
            self._shown = ""
        piece, self._shown = text[len(self._shown) :], text
        if piece:
            self._on_text(piece)
