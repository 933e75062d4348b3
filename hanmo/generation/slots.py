"""A decoding state with fixed columns, whose step is recorded once and replayed for every token.

On a GPU a step of a few rows takes less time than launching its kernels one by one; a CUDA graph launches them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hanmo.nn.batching import batching_of

COLUMNS = 256  # in multiples of this number
EAGER = 2  # steps before one is recorded: they warm up what it uses, and short replies need no graph
Step = Callable[[], Tensor]
Record = Callable[[Step], Step]


def recorder(device: torch.device) -> Record | None:
    """How steps are recorded there; None: not at all.

    Not under autocast, whose 16-bit copies of the weights a graph would keep, and not between processes.
    """
    among_processes = torch.distributed.is_available() and torch.distributed.is_initialized()
    if device.type != "cuda" or among_processes or torch.is_autocast_enabled("cuda"):
        return None
    return cuda_graph


def cuda_graph(step: Step) -> Step:
    """A step without waits of the host and copies from it, recorded; its tensors stay where they are."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a server's other threads go on
        logits_R1V = step()

    def replay() -> Tensor:
        graph.replay()
        return logits_R1V

    return replay


def can_be_fixed(network: Any, state: Any) -> bool:
    """Whether steps in fixed columns are exact: of our networks, and of models of transformers for which a probe says so."""
    return hasattr(state, "fixed") and batching_of(network).slots


def bucket(rows: int) -> int:
    """The next power of two: a recorded step serves any number of rows up to its own."""
    return 1 << (rows - 1).bit_length()


def columns_of(tokens: int) -> int:
    """The fixed columns for so many tokens."""
    return -(-tokens // COLUMNS) * COLUMNS


class Slots:
    """Rows of one state in fixed columns. ``record``: makes of a step one that can be repeated."""

    def __init__(self, network: Any, state: Any, rows: int, dimensions: int, record: Record):
        self._network, self._record = network, record
        self.length = state.length  # columns in use
        self._columns = columns_of(state.length + 1)
        self._state = state.fixed(self._columns)
        self._ids_R1 = torch.zeros(rows, 1, dtype=torch.int64, device=state.device)
        self._positions_RP1 = torch.zeros(rows, dimensions, 1, dtype=torch.int64, device=state.device)
        self._replay: Step | None = None
        self._taken = 0  # steps

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
        if self._replay is None and self._taken >= EAGER:
            self._replay = self._record(self._once)
        logits_R1V = (self._replay or self._once)()
        self._taken += 1
        self.length += 1
        return logits_R1V

    def _once(self) -> Tensor:
        return self._network.step(self._ids_R1, self._positions_RP1, self._state)
