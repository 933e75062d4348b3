"""The replies to one request, on the event loop's side."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.rows import Context
from hanmo.serving.errors import ClientGoneError

KEEP_ALIVE = 15  # seconds without news after which a stream says that it is alive
Finish = Literal["stop", "length", "cancelled", "shutdown"]


@dataclass(frozen=True)
class Ask:
    """A reply to decode; ``best``: the most likely tokens to record at each step."""

    context: Context
    settings: Settings
    place: Place
    best: int = 0


@dataclass(frozen=True)
class Update:
    """What is new of a reply."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # of each id, and of the stop token at the end
    best: tuple[list[tuple[int, float]], ...] = ()
    finish: Finish | None = None
    error: Exception | None = None
    stop: int | None = None  # the stop token that ended the reply


class Owner(Protocol):
    """Who decodes the replies of jobs."""

    def extend(self, job: Job, index: int, ask: Ask) -> None: ...

    def cancel(self, job: Job, index: int) -> None: ...


class Job:
    """The replies to one request, by index. It ends when all are over, or when the client leaves."""

    def __init__(self, worker: Owner, model: str, asks: Sequence[Ask]):
        self.model, self.asks = model, list(asks)
        self.gone = False
        self.reused = 0  # tokens of the prompts that had been read for other requests
        self.started_at: float | None = None  # when the first reply got a row, on the clock of time.monotonic
        self._worker = worker
        self._open = set(range(len(asks)))
        self._arrived: deque[tuple[int, Update]] = deque()
        self._wake = asyncio.Event()

    async def updates(self) -> AsyncIterator[tuple[int, Update] | None]:
        """Updates with the index of their reply; None after ``KEEP_ALIVE`` seconds without any.

        Raises the error of a reply, and ClientGoneError once the client has left.
        """
        while self._open or self._arrived:
            if self._arrived:
                index, update = self._arrived.popleft()
                if update.error is not None:
                    raise update.error
                yield index, update
                continue
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), KEEP_ALIVE)
            except asyncio.TimeoutError:
                yield None
        if self.gone:
            raise ClientGoneError

    def extend(self, index: int, ask: Ask) -> None:
        """Decode a further reply under the index of one that is over."""
        self._open.add(index)
        self._worker.extend(self, index, ask)

    def cancel(self, index: int | None = None) -> None:
        """Give up a reply, or all that are left."""
        given_up = set(self._open) if index is None else {index}
        self._arrived = deque(one for one in self._arrived if one[0] not in given_up)
        for one in given_up & self._open:
            self._open.discard(one)
            self._worker.cancel(self, one)

    def leave(self) -> None:
        """The client has gone: nothing more is wanted."""
        self.gone = True
        self.cancel()
        self._arrived.clear()
        self._wake.set()

    def receive(self, index: int, update: Update) -> None:
        if index not in self._open:
            return
        self._arrived.append((index, update))
        if update.finish is not None or update.error is not None:
            self._open.discard(index)
        self._wake.set()

    def end(self, update: Update) -> None:
        """End every open reply with this update."""
        for index in list(self._open):
            self.receive(index, update)
            self._worker.cancel(self, index)
