"""Which rows of several sources an epoch takes, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import torch


@dataclass(frozen=True)
class Mixture:
    """The rows of each source, and the share of an epoch that each source makes up; without shares, every row once.

    An epoch has as many rows as all sources together. It takes its share of each source's own sequence, in which the source
    comes again and again, newly shuffled, and the next epoch goes on where this one ends: a source with fewer rows than its
    share repeats within an epoch, and of one with more some rows wait. Rows are counted through all sources.
    """

    counts: tuple[int, ...]
    shares: tuple[float, ...] = ()

    @cached_property
    def total(self) -> int:
        return sum(self.counts)

    @cached_property
    def quotas(self) -> list[int]:
        """Rows of each source in an epoch, at least 1: whole numbers with the sum of the counts, nearest to the shares."""
        exact = [share / sum(self.shares) * self.total for share in self.shares]
        quotas = [max(1, int(rows)) for rows in exact]
        lacking = sorted(range(len(exact)), key=lambda source: quotas[source] - exact[source])
        for source in lacking[: max(self.total - sum(quotas), 0)]:
            quotas[source] += 1
        return quotas

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.quotas) if self.shares else self.total

    @property
    def laps(self) -> int:
        """The epochs after which every row has been taken."""
        return (
            max(-(-count // quota) for count, quota in zip(self.counts, self.quotas, strict=True)) if self.shares else 1
        )

    def items(self, epoch: int, seed: int) -> Sequence[int]:
        """The rows of an epoch, source by source: how often its source has been passed x ``total`` + the row."""
        if not self.shares:
            return range(epoch * self.total, (epoch + 1) * self.total)
        found, start = list[int](), 0
        for source, (count, quota) in enumerate(zip(self.counts, self.quotas, strict=True)):
            first, skipped = divmod(epoch * quota, count)
            walk = list[int]()
            for number in range(first, (epoch * quota + quota - 1) // count + 1):
                generator = torch.Generator().manual_seed(Random(f"{seed}/{source}/{number}").getrandbits(63))
                order = torch.randperm(count, generator=generator) + (number * self.total + start)
                walk += order.tolist()
            found += walk[skipped : skipped + quota]
            start += count
        return found

    def order(self, epoch: int, seed: int) -> list[int]:
        """``items`` in the order of the epoch, which depends on nothing but the seed and the epoch."""
        items = self.items(epoch, seed)
        return [items[place] for place in torch.randperm(len(items), generator=epoch_draws(epoch, seed)).tolist()]


def epoch_draws(epoch: int, seed: int) -> torch.Generator:
    """The generator of an epoch's order."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def mixture_of(rows: Any) -> Mixture:
    """That of joined rows, or of a single source."""
    return getattr(rows, "mixture", None) or Mixture((len(rows),))
