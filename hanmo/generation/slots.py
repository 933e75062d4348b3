"""A decoding state with fixed columns, whose step is recorded once and replayed for every token.

On a GPU a step of a few rows takes less time than launching its kernels one by one; a CUDA graph launches them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COLUMNS = 256  # in multiples of this number
Step = Callable[[], Tensor]
Record = Callable[[Step], Step]


def cuda_graph(step: Step) -> Step:
    """A step without waits of the host and copies from it, recorded; its tensors stay where they are."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits_R1V = step()

    def replay() -> Tensor:
        graph.replay()
        return logits_R1V

    return replay


def can_be_fixed(state: Any) -> bool:
    return hasattr(state, "fixed")


def bucket(rows: int) -> int:
    """The next power of two: a recorded step serves any number of rows up to its own."""
    return 1 << (rows - 1).bit_length()


class Slots:
    """Rows of one state in fixed columns. ``record``: makes of a step one that can be repeated."""

    def __init__(self, network: Any, state: Any, dimensions: int, record: Record):
        rows = len(state.valid_RC)
        self._network, self._record, self._replay = network, record, None
        self.length = state.length  # columns in use
        self._columns = -(-(state.length + 1) // COLUMNS) * COLUMNS
        self._state = state.fixed(self._columns)
        self._ids_R1 = torch.zeros(rows, 1, dtype=torch.int64, device=state.device)
        self._positions_RP1 = torch.zeros(rows, dimensions, 1, dtype=torch.int64, device=state.device)
        self._replay: Step | None = None
        self._warm = False

    @property
    def full(self) -> bool:
        return self.length == self._columns

    def takes(self, state: Any) -> bool:
        """Continue with this state, if it has as many rows and there is room for a token."""
        if not self._state.fits(state):
            return False
        self._state.load(state)
        self.length = state.length
        return True

    def loose(self) -> Any:
        """The state, to be changed between steps."""
        return self._state.loose(self.length)

    def step(self, fed_RF: Tensor) -> Tensor:
        """The logits (R, 1, V) after one more token of each row; the next step overwrites them.

        Args:
            fed_RF: (R, 1 + P) int64 on the host, ids and positions.
        """
        fed_RF = fed_RF.to(self._ids_R1.device, non_blocking=True)
        self._ids_R1.copy_(fed_RF[:, :1])
        self._positions_RP1.copy_(fed_RF[:, 1:, None])
        if self._replay is None and self._warm:
            self._replay = self._record(self._once)
        logits_R1V = (self._replay or self._once)()
        self._warm = True
        self.length += 1
        return logits_R1V

    def _once(self) -> Tensor:
        return self._network.step(self._ids_R1, self._positions_RP1, self._state)
