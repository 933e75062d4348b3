"""Dropout that a CPU draws quickly: what is dropped, by how much the rest grows, what it costs and repeats."""

import pytest
import torch

from hanmo.nn.cpu.layers import LEVELS, Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1001, 257), (7,), (0, 3)])
def test_elements_are_dropped_or_scaled(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.1, True)
    scale = LEVELS / (LEVELS - round(0.1 * LEVELS))
    assert y.shape == x.shape and y.dtype == dtype
    assert set(y.detach().float().unique().tolist()) <= {0.0, torch.tensor(scale, dtype=dtype).item()}
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach())  # the derivative of s x is s, and here x = 1
    if x.numel() > 1000:
        assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / x.numel()) ** 0.5)


def test_neighbours_are_dropped_independently() -> None:
    """Four elements come from one draw."""
    torch.manual_seed(0)
    kept_N4 = (dropout(torch.ones(100_000, 4), 0.5, True) > 0).double()
    correlation = torch.corrcoef(kept_N4.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02
    assert (kept_N4.mean(0) - 0.5).abs().max() < 0.01


def test_a_seed_repeats_it_and_evaluation_is_without() -> None:
    layer, x = Dropout(0.3), torch.randn(50)
    torch.manual_seed(5)
    first = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything(p: float) -> None:
    x = torch.randn(20)
    assert torch.equal(dropout(x, p, True), x * (1 - p))
