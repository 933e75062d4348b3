"""What the output head keeps for the backward pass, and what it computes again."""

import pytest
import torch
from torch import nn

from hanmo.families.transformer_xl.modeling import TransformerXLConfig, TransformerXLModel
from hanmo.nn.row_model import KEPT, kept_places, score_tokens
from hanmo.training.trainable import checkpoint_layers

PLACES = 7


@pytest.mark.parametrize(("kept", "again"), [(0, 4), (1, 4), (4, 2), (100, 0)])
def test_chunks_beyond_the_kept_places_are_computed_again(kept: int, again: int) -> None:
    """Four chunks of two places, the last of them half full; gradients are those of one chunk whatever is kept."""
    torch.manual_seed(0)
    head, hidden = nn.Linear(3, 5), torch.randn(1, PLACES, 3, requires_grad=True)
    labels, calls = torch.randint(0, 5, (1, PLACES)), []
    expected = torch.autograd.grad(score_tokens(head, hidden, labels)[0].sum(), (hidden, head.weight))
    head.register_forward_hook(lambda *_: calls.append(1))
    logprobs, _ = score_tokens(head, hidden, labels, chunk=2, kept=kept)
    assert len(calls) == 4
    found = torch.autograd.grad(logprobs.sum(), (hidden, head.weight))
    assert len(calls) == 4 + again
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("selective", "kept"), [(None, KEPT), (True, KEPT), (False, 0)])
def test_nothing_is_kept_where_whole_layers_are_computed_again(selective: bool | None, kept: int) -> None:
    network = TransformerXLModel(TransformerXLConfig(vocab_size=8, hidden_size=4, num_layers=2, num_heads=2))
    if selective is not None:
        checkpoint_layers(network, selective=selective)
    assert kept_places(network) == kept
