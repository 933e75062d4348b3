"""All replies of a beam search, and the tokens of a reply as they arrive."""

from __future__ import annotations

from collections.abc import Sequence

from hanmo.families.base import OpenedModel
from hanmo.families.decoding import SearchConventions
from hanmo.generation.beam import Generation
from hanmo.generation.decode import _Beams, generate
from hanmo.generation.draws import Place, Sampler
from hanmo.generation.settings import Settings
from hanmo.nn.batching import batch_groups
from hanmo.rows import Context


def search(
    opened: OpenedModel, contexts: Sequence[Context], settings: Settings, conventions: SearchConventions | None = None
) -> list[list[Generation]]:
    """For each context all replies that a beam search has kept (at most ``num_beams``), best first."""
    found: dict[int, list[Generation]] = {}
    for chosen in batch_groups(opened.network, [len(context.ids) for context in contexts]):
        places = [Place(number) for number in chosen]
        batch = _Beams(opened, [contexts[number] for number in chosen], settings, None, conventions, places)
        assert all(not drawn for drawn in batch.run())
        found |= zip(chosen, batch.search.results(), strict=True)
    return [found[number] for number in range(len(contexts))]


def stream(opened: OpenedModel, context: Context, settings: Settings, sampler: Sampler | None = None) -> list[int]:
    """The ids of a reply in the order in which they are given out; with beams all at the end."""
    tokens: list[int] = []
    [reply] = generate(opened, [context], settings, lambda _, token: tokens.append(token), sampler)
    return tokens or list(reply.ids)
