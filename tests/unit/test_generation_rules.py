"""Token rules: hand-computed, and against transformers' processors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from hanmo.families.decoding import penalise
from hanmo.generation.processors import SUPPRESSED, TokenLogitsProcessor, repeated
from hanmo.generation.settings import Settings

STOP = 0
ids_of_rows = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def apply(settings, prompts, generated, sources=None, width=6):
    rules = TokenLogitsProcessor(settings, prompts, (STOP,))
    rows = len(generated)
    scores = torch.arange(rows * width).view(rows, width).float() - 3
    return rules(generated, range(rows) if sources is None else sources, scores)


def test_penalty_by_hand():
    scores = torch.tensor([[2.0, -2.0, 3.0, 0.0]] * 2)
    penalise(scores, [{0, 1, 3}, {2}], 2.0)
    assert scores.tolist() == [[1.0, -4.0, 3.0, 0.0], [2.0, -2.0, 1.5, 0.0]]


@pytest.mark.parametrize("penalty", [0.5, 2.0])
def test_any_penalty_but_one_counts(penalty):
    """The prompt's 1 and what was said, 4; scores are -3, -2 … 2."""
    scores = apply(Settings(repetition_penalty=penalty), [[1]], [[4]])
    assert scores.tolist() == [[-3, -2 * penalty, -1, 0, 1 / penalty, 2]]


def test_repeated_by_hand():
    assert repeated([1, 2, 3, 1, 2], 3) == {3}
    assert repeated([1, 2, 1, 3, 1], 2) == {2, 3}
    assert repeated([4, 5, 4], 1) == {4, 5}
    assert repeated([1, 2], 3) == set()


def test_minimum_length_and_banned_ids():
    settings = Settings(min_new_tokens=2, suppressed_ids=(4,))
    scores = apply(settings, [[1], [1]], [[1], [1, 1]])
    assert (scores == SUPPRESSED).nonzero().tolist() == [[0, STOP], [0, 4], [1, 4]]


def test_a_row_follows_its_own_prompt():
    settings = Settings(no_repeat_ngram_size=2)
    scores = apply(settings, [[1, 2], [1, 3]], [[1], [1], [1]], sources=[1, 0, 1])
    assert (scores == SUPPRESSED).nonzero().tolist() == [[0, 3], [1, 2], [2, 3]]


def test_needed_only_where_a_rule_is_on():
    assert not TokenLogitsProcessor.needed(Settings())
    for change in (
        {"repetition_penalty": 1.1},
        {"min_new_tokens": 1},
        {"no_repeat_ngram_size": 2},
        {"suppressed_ids": (1,)},
    ):
        assert TokenLogitsProcessor.needed(Settings(**change))


@pytest.mark.parametrize("penalty", [0.8, 1.3])
@given(prompt=ids_of_rows, said=ids_of_rows, size=st.integers(1, 4))
def test_as_transformers_processors(penalty, prompt, said, size):
    settings = Settings(repetition_penalty=penalty, no_repeat_ngram_size=size)
    ids = torch.tensor([prompt + said])
    expected = torch.arange(6).view(1, 6).float() - 3
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, expected)
    expected = NoRepeatNGramLogitsProcessor(size)(ids, expected)
    assert torch.equal(apply(settings, [prompt], [said]), expected)
