"""The pretended device refuses what a GPU refuses, lets through what one lets through, and computes the CPU's numbers."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from tests.devices.pretended import OnDevice, pretended

HOST = torch.arange(6.0).view(2, 3)
REFUSED: dict[str, Callable[[Tensor], object]] = {
    "sum with a tensor of the host": lambda x: x + HOST,
    "product with a matrix of the host": lambda x: x @ HOST.T,
    "concatenation": lambda x: torch.cat([x, HOST]),
    "stack of scalars": lambda x: torch.stack([x.sum(), HOST.sum()]),
    "a tensor of the host indexed from the device": lambda x: HOST[x[:, 0].long()],
    "host values written to the device by index": lambda x: x.index_put_((torch.tensor([0]),), HOST[0]),
    "an embedding of ids on the host": lambda x: nn.functional.embedding(torch.tensor([0, 1]), x),
    "a scalar of the host changed by one of the device": lambda x: HOST.sum().add_(x.sum()),
    "attention with a mask on the host": lambda x: nn.functional.scaled_dot_product_attention(
        x, x, x, attn_mask=torch.ones(2, 2, dtype=torch.bool)
    ),
}
TAKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: x * 2 + 1,
    "a scalar of the host": lambda x: x / HOST.sum(),
    "an index from the host": lambda x: x[torch.tensor([1, 0])],
    "a number written by index": lambda x: x.clone().index_fill_(0, torch.tensor([0], device=x.device), 7.0),
    "a copy to the host and back": lambda x: x.cpu().to(x.device) + x,
    "a view changed in place": lambda x: _changed(x.clone()),
    "what is made on the device": lambda x: x + torch.ones(3, device=x.device) + x.new_zeros(3) + torch.zeros_like(x),
    "another dtype": lambda x: x.to(torch.bfloat16).float(),
}


def _changed(x: Tensor) -> Tensor:
    x[0].add_(5.0)
    return x


@pytest.mark.parametrize("what", REFUSED)
def test_devices_do_not_mix(what: str) -> None:
    with pretended() as device:
        moved = HOST.to(device)
        with pytest.raises(RuntimeError, match="same device"):
            REFUSED[what](moved)


@pytest.mark.parametrize("what", TAKEN)
def test_what_a_gpu_takes_gives_the_cpus_values(what: str) -> None:
    with pretended() as device:
        found = TAKEN[what](HOST.to(device))
        assert found.device == torch.device("cuda", 0) and found.is_cuda
        assert torch.equal(found.cpu(), TAKEN[what](HOST))
        assert found.tolist() == TAKEN[what](HOST).tolist()


def test_numpy_wants_the_host() -> None:
    with pretended() as device:
        moved = HOST.to(device)
        with pytest.raises(TypeError, match="to numpy"):
            moved.numpy()
        assert moved.cpu().numpy().sum() == 15


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.double(),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: torch.zeros(2, dtype=torch.float64, device=x.device),
        lambda x: torch.zeros(2, dtype=torch.float64).to(x.device),
    ],
)
def test_mps_has_no_float64(make: Callable[[Tensor], Tensor]) -> None:
    with pretended("mps") as device:
        moved = HOST.to(device)
        with pytest.raises(TypeError, match="float64"):
            make(moved)
        assert moved.cpu().double().sum() == 15
    with pretended("cuda") as device:
        assert make(HOST.to(device)).dtype == torch.float64


def test_a_network_moves_with_its_ties_and_learns_the_same() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        made[2].weight = made[0].weight
        return made

    def learnt(made: nn.Module, x: Tensor) -> list[Tensor]:
        optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            made(x).square().mean().backward()
            nn.utils.clip_grad_norm_(made.parameters(), 0.5)
            optimizer.step()
        return [parameter.detach().cpu() for parameter in made.parameters()]

    expected = learnt(network(), HOST)
    with pretended() as device:
        moved = network().to(device)
        assert moved[2].weight is moved[0].weight  # type: ignore[index]
        assert all(isinstance(parameter, OnDevice) for parameter in moved.parameters())
        copied = deepcopy(moved)
        for one, other in zip(learnt(moved, HOST.to(device)), expected, strict=True):
            assert torch.equal(one, other)
        assert not torch.equal(next(copied.parameters()).cpu(), expected[0])  # a copy does not learn along


def test_data_can_be_exchanged() -> None:
    """So is a policy's reference put in its place."""
    with pretended() as device:
        one, other = nn.Parameter(HOST.to(device)), HOST.to(device) + 1
        kept, one.data = one.data, other
        assert torch.equal(one.detach().cpu(), HOST + 1) and torch.equal(kept.cpu(), HOST)


def test_draws_are_the_cpus() -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    with pretended() as device:
        drawn = torch.rand(3, generator=torch.Generator(device).manual_seed(5), device=device)
        assert isinstance(drawn, OnDevice) and torch.equal(drawn.cpu(), expected)


def test_nothing_is_left_behind() -> None:
    before = torch.Generator, torch.inference_mode, nn.Module.to, torch.cuda.is_available
    with pretended():
        assert torch.Generator is not before[0]
    assert (torch.Generator, torch.inference_mode, nn.Module.to, torch.cuda.is_available) == before
