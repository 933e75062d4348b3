"""What the recordings of transformers 4.31's ``generate`` look like, for the two families recorded with it."""

from typing import Any

import pytest

from hanmo.families.base import OpenedModel
from hanmo.families.decoding import TRANSFORMERS_4_31
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.rows import Context
from tests.searching import search

# Their names -> ours; what is not listed must be known to change nothing.
NAMES = ("max_new_tokens", "min_new_tokens", "num_beams", "length_penalty", "early_stopping")
NAMES += ("repetition_penalty", "no_repeat_ngram_size", "do_sample")
HANDLED = {"pad_token_id", "eos_token_id", "bad_words_ids", "num_return_sequences"}


def settings(kwargs: dict[str, Any]) -> Settings:
    assert set(kwargs) <= {*NAMES, *HANDLED}, f"unknown settings: {set(kwargs) - {*NAMES, *HANDLED}}"
    banned = kwargs.get("bad_words_ids", [])
    assert all(len(word) == 1 for word in banned)
    given = {name: kwargs[name] for name in NAMES if name in kwargs}
    return Settings().change(**given, suppressed_ids=tuple(word[0] for word in banned))


def check_generation(opened: OpenedModel, contexts: list[Context], case: dict[str, Any], widths: list[int]) -> None:
    """Ids exactly, and the scores of beams; ``widths``: columns of each recorded prompt."""
    kwargs = case["kwargs"]
    stops = kwargs["eos_token_id"]
    stop, pad = stops[0] if isinstance(stops, list) else stops, kwargs["pad_token_id"]
    limit = kwargs["max_new_tokens"]
    wanted = [row[width:] for row, width in zip(case["sequences"], widths, strict=True)]
    if kwargs.get("num_beams", 1) == 1:
        replies = generate(opened, contexts, settings(kwargs))
        rows = [
            list(reply.ids) + ([row[len(reply.ids)]] if reply.finished else [])
            for reply, row in zip(replies, wanted, strict=True)
        ]
        assert [row + [pad] * (len(want) - len(row)) for row, want in zip(rows, wanted, strict=True)] == wanted
        assert all(
            row[-1] in (stops if isinstance(stops, list) else [stops])
            for row, reply in zip(rows, replies, strict=True)
            if reply.finished
        )
        return
    returned = kwargs.get("num_return_sequences", 1)
    found = [
        hypothesis
        for each in search(opened, contexts, settings(kwargs), TRANSFORMERS_4_31)
        for hypothesis in each[:returned]
    ]
    width = min(max(len(one.ids) for one in found) + 1, limit)
    rows = [(list(one.ids) + [stop] + [pad] * width)[:width] for one in found]
    assert rows == wanted
    assert [one.score for one in found] == pytest.approx(case["sequences_scores"], abs=1e-4)
