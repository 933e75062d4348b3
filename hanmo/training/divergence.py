"""When a finite loss shows that training has gone wrong."""

from __future__ import annotations

from collections import deque

STEPS = 20  # in a row: spikes that pass by themselves, as those of large pretraining runs do, are shorter
GUESSING = 10.0  # nats a token: what guessing costs among 22,000 tokens, so any loss below may be where a run begins
FACTOR, MARGIN = 2.0, 3.0  # the margin, a token 20 times less likely, is for losses near 0, whose doubles mean nothing


class LossWatch:
    """Watches the losses of optimizer steps.

    A loss has exploded when it was far above its ceiling for ``STEPS`` steps without a break. The ceiling is the lowest
    height that the losses of so many steps in a row have kept below; before there are as many, the first loss, or that of
    guessing. A run that learns slowly, starts high, or meets hard batches now and then never gets there; nor does one
    that falls back to what it knew at its start, unless it had learned to halve it.
    """

    def __init__(self) -> None:
        self.ceiling = 0.0
        self.began: int | None = None  # the first of the steps without a break
        self._last: deque[float] = deque(maxlen=STEPS)

    @property
    def limit(self) -> float:
        """What is above counts as far above the ceiling."""
        return max(FACTOR * self.ceiling, self.ceiling + MARGIN)

    def exploded(self, step: int, loss: float) -> bool:
        """Whether it has, with the loss of one more step."""
        if not self._last:
            self.ceiling = max(loss, GUESSING)
        self._last.append(loss)
        if loss <= self.limit:
            self.began = None
        elif self.began is None:
            self.began = step
        if len(self._last) == STEPS:
            self.ceiling = min(self.ceiling, max(self._last))
        return self.began is not None and step - self.began + 1 >= STEPS
