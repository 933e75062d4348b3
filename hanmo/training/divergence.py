"""Detection of training that diverges while its loss is still finite."""

from collections import deque

STEPS = 20  # in a row; large pretraining runs recover from shorter spikes
UNIFORM_LOSS = 10.0  # nats a token, the loss of a uniform guess among 22,000 tokens; a run may start at any lower loss
FACTOR, MARGIN = 2.0, 3.0  # the margin, a token 20 times less likely, is for losses near 0, which double by chance


class LossWatch:
    """Watches losses: a run has diverged when those of ``STEPS`` steps in a row were far above the ceiling.

    The ceiling is the smallest bound below which the losses of ``STEPS`` consecutive steps stayed; before that, the
    first loss or that of a uniform guess, whichever is higher. A run that learns slowly, starts high, or meets hard
    batches now and then does not diverge; nor does one that returns to its first loss, unless it had halved it.
    """

    def __init__(self) -> None:
        self.ceiling = 0.0
        self.began: int | None = None  # the first of the steps in a row
        self._last: deque[float] = deque(maxlen=STEPS)

    @property
    def limit(self) -> float:
        """Losses above this are far above the ceiling."""
        return max(FACTOR * self.ceiling, self.ceiling + MARGIN)

    def diverged(self, step: int, loss: float) -> bool:
        """Whether the run has diverged, with the loss of one more step."""
        if not self._last:
            self.ceiling = max(loss, UNIFORM_LOSS)
        self._last.append(loss)
        if loss <= self.limit:
            self.began = None
        elif self.began is None:
            self.began = step
        if len(self._last) == STEPS:
            self.ceiling = min(self.ceiling, max(self._last))
        return self.began is not None and step - self.began + 1 >= STEPS
