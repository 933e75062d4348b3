"""Top-k and top-p on values that can be checked by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hanmo.generation.processors import CANDIDATES, SUPPRESSED, top_k, top_p

# Probabilities 0.5, 0.25, 0.125, 0.125.
HALVES = torch.tensor([[0.5, 0.125, 0.25, 0.125]]).log()


def kept(scores):
    return [row.nonzero()[:, 0].tolist() for row in scores > SUPPRESSED]


def test_top_k():
    assert kept(top_k(HALVES, 1)) == [[0]]
    assert kept(top_k(HALVES, 2)) == [[0, 2]]
    assert kept(top_k(HALVES, 3)) == [[0, 1, 2, 3]]  # the two last are equal
    assert top_k(HALVES, 0) is HALVES and top_k(HALVES, 9) is HALVES


def test_top_p_keeps_the_token_that_crosses():
    assert kept(top_p(HALVES, 0.3)) == [[0]]
    assert kept(top_p(HALVES, 0.6)) == [[0, 2]]
    assert kept(top_p(HALVES, 0.76)) == [[0, 1, 2]]  # of equal scores the first
    assert kept(top_p(HALVES, 0.99)) == [[0, 1, 2, 3]]
    assert kept(top_p(HALVES, 1e-9)) == [[0]]
    assert top_p(HALVES, 0) is HALVES and top_p(HALVES, 1) is HALVES


def test_the_cut_score_is_the_callers():
    assert top_p(HALVES, 0.3, -10000.0)[0, 1:].tolist() == [-10000.0] * 3
    assert top_k(HALVES, 1, -10000.0)[0, 1:].tolist() == [-10000.0] * 3


def test_rows_are_filtered_by_themselves():
    both = torch.cat([HALVES, HALVES.flip(-1)])
    assert kept(top_p(both, 0.6)) == [[0, 2], [1, 3]]
    assert kept(top_k(both, 1)) == [[0], [3]]


def test_a_dead_row_stays_dead():
    """Beams that cannot go on have nothing but -inf."""
    assert kept(top_p(torch.full((1, 5), SUPPRESSED), 0.9)) == [[]]


@given(st.integers(0, 10_000), st.floats(0.01, 0.999), st.sampled_from([0.01, 1.0, 5.0]))
def test_top_p_is_the_smallest_set(seed, p, spread):
    """Over vocabularies wider than the first look, flat ones (all looked at) and peaked ones alike."""
    scores = torch.randn(2, CANDIDATES + 100, generator=torch.Generator().manual_seed(seed)).double() * spread
    probs = scores.softmax(-1)
    for row, ids in zip(probs, kept(top_p(scores, p)), strict=True):
        chosen = row[ids].sum()
        assert chosen > p
        assert chosen - row[ids].min() <= p
        assert len(ids) == len(row) or row[ids].min() >= row[[i for i in range(len(row)) if i not in set(ids)]].max()
