"""All replies of a beam search, the tokens of a reply as they arrive, and replies with the draws of a test."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from hanmo.families.base import OpenedModel
from hanmo.families.decoding import SearchConventions
from hanmo.generation.beam import Generation
from hanmo.generation.decode import generate
from hanmo.generation.draws import Place, Sampler
from hanmo.generation.engine import Engine
from hanmo.generation.group import BeamGroup
from hanmo.generation.settings import Settings
from hanmo.nn.batching import batch_groups
from hanmo.nn.row_model import evaluating
from hanmo.rows import Context


@contextmanager
def drawing(sampler: Sampler) -> Iterator[None]:
    """Replace the random draws; the samples that ``sampler`` gets are indices of the contexts of ``generate``."""

    def placed(seed: int | None, places: Sequence[Place], device: object) -> Sampler:
        return lambda step, samples, probs, count: sampler(step, [places[one].record for one in samples], probs, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hanmo.generation.group.placed_sampler", placed)
        yield


def search(
    opened: OpenedModel, contexts: Sequence[Context], settings: Settings, conventions: SearchConventions | None = None
) -> list[list[Generation]]:
    """For each context all replies that a beam search has kept (at most ``num_beams``), best first."""
    found: dict[int, list[Generation]] = {}
    for chosen in batch_groups(opened.network, [len(context.ids) for context in contexts]):
        places = [Place(number) for number in chosen]
        with pytest.MonkeyPatch.context() as patch:
            if conventions is not None:
                patch.setattr("hanmo.generation.group.SearchConventions", lambda: conventions)
            engine = Engine(opened)
            group = engine.add([contexts[number] for number in chosen], settings, places)
        assert isinstance(group, BeamGroup)
        with evaluating(opened.network):
            while not engine.idle:
                engine.step()
                assert not group.drawn
        if group.error:
            raise group.error
        found |= zip(chosen, group.found, strict=True)
    return [found[number] for number in range(len(contexts))]


def stream(opened: OpenedModel, context: Context, settings: Settings) -> list[int]:
    """The ids of a reply in the order in which they are given out; with beams all at the end."""
    tokens: list[int] = []
    [reply] = generate(opened, [context], settings, lambda _, token: tokens.append(token))
    return tokens or list(reply.ids)
