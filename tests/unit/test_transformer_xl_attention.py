"""The piecewise attention against the same formula left to autograd."""

import pytest
import torch

from hanmo.families.transformer_xl import attention
from hanmo.families.transformer_xl.attention import PiecewiseAttention
from hanmo.families.transformer_xl.relative import MASKED, hide_, relative_scores
from hanmo.nn.cpu.layers import draw_kept, kept_scale

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 5, 9, 4
SEEN = torch.ones(1, 1, QUERIES, KEYS, dtype=torch.bool).tril(KEYS - QUERIES)
NAMES = ("content", "position", "key", "value", "table")


def tensors(relative: bool) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    queries, keys = (BATCH, HEADS, QUERIES, WIDTH), (BATCH, HEADS, KEYS, WIDTH)
    shapes = [queries, queries if relative else None, keys, keys, (HEADS, KEYS, WIDTH) if relative else None]
    return [shape and torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def plainly(inputs, mask, p: float) -> torch.Tensor:
    content, position, key, value, table = inputs
    probabilities = hide_(relative_scores(content, position, key, table), mask, MASKED).softmax(-1)
    if p:  # drawn row by row of the batch, as pieces of whole rows are
        kept = torch.cat([draw_kept(row[None].shape, p) for row in probabilities])
        probabilities = probabilities * kept * kept_scale(p)
    return probabilities @ value


def gradients(result: torch.Tensor, inputs) -> list[torch.Tensor]:
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(4))
    return list(torch.autograd.grad((result * weight).sum(), [one for one in inputs if one is not None]))


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("relative", [True, False])
def test_result_and_gradients_are_those_of_autograd(relative, p):
    inputs, mask = tensors(relative), SEEN
    torch.manual_seed(1)
    expected = plainly(inputs, mask, p)
    torch.manual_seed(1)
    found = PiecewiseAttention.apply(*inputs, mask, p)
    torch.testing.assert_close(found, expected)
    names = [name for name, one in zip(NAMES, inputs, strict=True) if one is not None]
    for name, ours, theirs in zip(names, gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_pieces_do_not_change_the_result(monkeypatch):
    inputs, mask = tensors(relative=True), torch.rand(BATCH, 1, QUERIES, KEYS) > 0.3
    whole = PiecewiseAttention.apply(*inputs, mask, 0.0)
    monkeypatch.setattr(attention, "PIECE", 2 * QUERIES * KEYS)  # two heads at a time of three
    pieces = PiecewiseAttention.apply(*inputs, mask, 0.0)
    torch.testing.assert_close(pieces, whole)
    for ours, theirs in zip(gradients(pieces, inputs), gradients(whole, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("relative", [True, False])
def test_blocks_of_queries_do_not_change_the_result(relative, monkeypatch):
    inputs = tensors(relative)
    whole = PiecewiseAttention.apply(*inputs, SEEN, 0.0)
    monkeypatch.setattr(attention, "BLOCK", 2)
    assert attention._blocks(SEEN, QUERIES, KEYS) == [(0, 2, 6), (2, 4, 8), (4, 5, 9)]
    blocks = PiecewiseAttention.apply(*inputs, SEEN, 0.0)
    torch.testing.assert_close(blocks, whole)
    for ours, theirs in zip(gradients(blocks, inputs), gradients(whole, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("places", [(..., 0, slice(None)), (..., 0, KEYS - 1)], ids=["sees nothing", "looks ahead"])
def test_no_column_is_left_out_where_a_query_sees_nothing_or_looks_ahead(places, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 2)
    mask = SEEN.clone()
    mask[places] = places[-1] == KEYS - 1
    inputs = tensors(relative=False)
    assert attention._blocks(mask, QUERIES, KEYS) == [(0, QUERIES, KEYS)]
    torch.testing.assert_close(PiecewiseAttention.apply(*inputs, mask, 0.0), plainly(inputs, mask, 0.0))
