"""What all families share, by hand: attention masks of causal networks, and texts cut where they part."""

import pytest
import torch

from hanmo.errors import UnsupportedError
from hanmo.nn.causal import causal_mask
from hanmo.rows import Part, split_at_difference

HIDDEN = torch.zeros(2, 3, 4)  # (B, T, D); its values do not matter


def test_options_part_where_they_differ() -> None:
    assert split_at_difference([[1, 2, 3], [1, 2, 4, 5]]) == [
        [Part((1, 2), False), Part((3,), True)],
        [Part((1, 2), False), Part((4, 5), True)],
    ]


def test_an_option_that_another_begins_with_keeps_a_token() -> None:
    assert split_at_difference([[1, 2], [1, 2, 3]]) == [
        [Part((1,), False), Part((2,), True)],
        [Part((1,), False), Part((2, 3), True)],
    ]
    with pytest.raises(UnsupportedError, match="predicted from nothing"):
        split_at_difference([[1], [1, 3]])


def test_a_mask_of_queries_and_keys_is_used_as_it_is() -> None:
    mask_BTT = torch.tensor([[[1, 0, 1], [0, 1, 0], [1, 1, 1]], [[0, 0, 1], [1, 1, 0], [0, 1, 1]]])
    for given in (mask_BTT, mask_BTT[:, None], mask_BTT.bool()):
        found = causal_mask(given, HIDDEN, None)
        assert found is not None and found.shape == (2, 1, 3, 3) and found.dtype == torch.bool
        assert torch.equal(found[:, 0], mask_BTT.bool())


def test_a_floating_mask_is_added_to_the_scores_of_earlier_keys() -> None:
    mask_BT = torch.tensor([[0.0, -1.0, 2.0], [0.5, 0.0, -3.0]])
    low = float("-inf")
    expected = [[[a, low, low], [a, b, low], [a, b, c]] for a, b, c in mask_BT.tolist()]
    found = causal_mask(mask_BT, HIDDEN, None)
    assert found is not None and found.tolist() == [[rows] for rows in expected]


def test_packed_examples_and_padding_see_what_they_may() -> None:
    """Numbers of examples, 0 for padding; a padding query sees itself, so that no row is empty."""
    assert causal_mask(torch.ones(2, 3), HIDDEN, None) is not None  # floating: added as it is
    for plain in ([[1, 1, 1], [1, 1, 1]], [[1, 1, 0], [1, 0, 0]]):  # nothing, or padding on the right
        assert causal_mask(torch.tensor(plain), HIDDEN, None) is None
        assert causal_mask(torch.tensor(plain).bool(), HIDDEN, None) is None
    assert causal_mask(torch.tensor([[0, 1, 1], [1, 1, 1]]), HIDDEN, None) is not None
    found = causal_mask(torch.tensor([[1, 2, 2], [1, 1, 0]]), HIDDEN, None)
    assert found is not None
    assert found[:, 0].int().tolist() == [[[1, 0, 0], [0, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
