"""Random draws that depend on the reply alone, not on its batch, its row or its device.

The noise of a token is a function of (seed, the reply's place, step, token): a counter goes through SplitMix64 (Steele
et al. 2014, "Fast splittable pseudorandom number generators"). Suffixes: R rows, S samples, N things to draw from.
"""

import secrets
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

Sampler = Callable[[int, Sequence[int], Tensor, int], Tensor]  # see ``placed_sampler``


class Place(NamedTuple):
    """The identity of a reply: the index of its prompt in the input, of the reply to it, and of the blank it fills."""

    record: int
    choice: int = 0
    blank: int = 0


def _signed(number: int) -> int:
    """The int64 with the same lowest 64 bits."""
    return (number & (1 << 64) - 1) - ((number & 1 << 63) << 1)


STEP = _signed(0x9E3779B97F4A7C15)  # between two counters: 2^64 by the golden ratio
MIXERS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))
BITS = 53  # of each draw; as many as fp64 has between 0 and 1
BELOW_ONE = 1 - 2.0**-24  # the largest fp32 under 1


def placed_sampler(seed: int | None, places: Sequence[Place], device: torch.device) -> Sampler:
    """A function that draws ids for a batch with one place per context. Without a seed one is drawn.

    Its arguments: the decoding step, from 0; the context of each row, by index; probabilities (R, N) in fp32, where N is
    the vocabulary, or beams x vocabulary for sampled beams; the number of draws from a row, without replacement.
    """
    chosen = secrets.randbits(63) if seed is None else seed
    keys_S = torch.tensor([_key(chosen, place) for place in places]).to(device)
    rows: tuple[list[int], Tensor] = (list(range(len(places))), keys_S)

    def draw(step: int, samples: Sequence[int], probs: Tensor, count: int) -> Tensor:
        nonlocal rows
        if rows[0] != samples:  # rows have left the batch; else nothing is copied to the device
            rows = (list(samples), keys_S[torch.tensor(samples, device=device)])
        # Exponential races: the ``count`` largest of probability / noise are a draw without replacement.
        return (probs / exponential(rows[1], step, probs.shape[1])).topk(count).indices

    return draw


def exponential(keys_R: Tensor, step: int, count: int) -> Tensor:
    """Exponential noise (R, ``count``) in fp32, all above 0 and finite, for a step of the replies with these keys."""
    counters_R = _mixed(keys_R + _signed(STEP * (step + 1)))
    counters_N = torch.arange(1, count + 1, device=keys_R.device) * STEP
    bits_RN = _shifted(_mixed(counters_R[:, None] + counters_N), 64 - BITS)
    uniform_RN = bits_RN.float().add_(0.5).mul_(2.0**-BITS).clamp_(max=BELOW_ONE)
    return uniform_RN.neg_().log1p_().neg_()


def _key(seed: int, place: Place) -> int:
    digest = blake2b(f"{seed} {' '.join(map(str, place))}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _mixed(numbers: Tensor) -> Tensor:
    """The output function of SplitMix64, in place."""
    for shift, factor in MIXERS:
        numbers.bitwise_xor_(_shifted(numbers, shift)).mul_(factor)
    return numbers.bitwise_xor_(_shifted(numbers, 31))


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) shift to the right."""
    return (numbers >> bits).bitwise_and_((1 << (64 - bits)) - 1)
