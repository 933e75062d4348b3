"""The one decode loop: every reply of chat, generate, rollouts, evaluation and serving is decoded here.

Groups of replies join and leave between steps.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from hanmo.errors import ConfigError, HanmoError, UnsupportedError, out_of_memory
from hanmo.families.base import OpenedModel
from hanmo.generation import reading
from hanmo.generation.batch import Batch
from hanmo.generation.draws import Place
from hanmo.generation.group import Group, make_group
from hanmo.generation.reading import Beginnings, Read, read
from hanmo.generation.settings import Settings
from hanmo.generation.slots import Record, bucket, columns_of, recorder
from hanmo.nn.decode_state import BLOCK
from hanmo.rows import Context

GB, MB = 2**30, 2**20


class Engine:
    """Decodes groups of replies side by side. Not thread-safe; the caller puts the network into ``evaluating`` mode.

    Args:
        most_rows: rows that are decoded at a time, beside those of a group that is alone; None: any number.
        rows: exactly so many rows in every step, each of which attends to its own keys only: on a CPU a reply then has
            the same bits in any company.
        cache_bytes: memory for keys and values: of the replies that are decoded, with their longest length, and of prompts
            that have been read, to go on from. None: no limit, and every prompt is read from its first token.
        record: makes of a step one that is replayed in ``Slots``; default: a CUDA graph, on a GPU and without ``rows``.
    """

    def __init__(
        self,
        opened: OpenedModel,
        most_rows: int | None = None,
        rows: int | None = None,
        cache_bytes: int | None = None,
        record: Record | None = None,
    ):
        if rows is not None and record is not None:
            raise ConfigError("rows and record: in slots the bits of a reply depend on their columns; give one of them")
        self._record = recorder(opened.network.device) if record is None and rows is None else record
        self.model, self._rows, self._cache_bytes = opened, rows, cache_bytes
        self.beginnings = None if cache_bytes is None else Beginnings(cache_bytes)
        self._column_bytes: int | None = None  # of a token of a row, known once a prompt has been read
        self._most_rows = most_rows if rows is None else rows
        self._waiting: deque[Group] = deque()
        self._reading: dict[Group, Iterator[Read | None]] = {}
        self._batches: list[Batch] = []

    @property
    def running(self) -> list[Group]:
        """The groups that are being read or decoded."""
        return [*self._reading, *(group for batch in self._batches for group in batch.groups)]

    @property
    def idle(self) -> bool:
        return not self._waiting and all(group.done for group in self.running)

    def add(
        self, contexts: Sequence[Context], settings: Settings, places: Sequence[Place] | None = None, best: int = 0
    ) -> Group:
        """Queue replies to contexts that may share a batch (``batch_groups``).

        Args:
            places: the identity of each reply, on which its random draws depend; default: its index in ``contexts``.
            best: most likely tokens to record at every step.

        Raises:
            ConfigError: settings that do not go together.
            UnsupportedError: a context that the model cannot continue.
        """
        group = make_group(self.model, contexts, settings, places, best)
        if self._rows is not None and group.width > self._rows:
            raise ConfigError(f"{group.width} rows for one prompt, but --rows {self._rows}: give more, or fewer beams")
        if self._rows is not None and settings.published:
            raise ConfigError("--rows: published decoding lets replies of a batch depend on each other; leave one out")
        self._waiting.append(group)
        return group

    def cancel(self, group: Group) -> None:
        """End a group; its rows are free from the next step on."""
        if group in self._waiting:
            self._waiting.remove(group)
        if not group.done:
            group.finish()

    def step(self) -> list[Group]:
        """Feed the tokens that were drawn last, read the prompts for which there is room, and draw from all rows.

        Returns the groups that have changed.
        """
        changed: list[Group] = []
        for batch in self._batches:
            changed += batch.guarded(batch.follow)
        self._batches = self._joined(changed)
        for batch in self._batches:
            changed += batch.guarded(batch.feed)
        changed += self._admit() + self._read()
        for batch in self._batches:
            changed += batch.guarded(batch.draw)
        return list(dict.fromkeys(changed))

    def _joined(self, changed: list[Group]) -> list[Batch]:
        """The batches that go on, those in one whose states can be; groups that are lost are added to ``changed``."""
        kept: list[Batch] = []
        if self._rows is None and len(self._batches) > 1:
            first, *others = self._batches
            changed += first.guarded(partial(first.reserve, others))
        for batch in self._batches:
            if not batch.groups or self._taken_over(batch, kept, changed):
                continue
            kept.append(batch)
            if self._rows is not None:
                changed += batch.guarded(partial(batch.widen, self._rows))
        return [batch for batch in kept if batch.groups]

    def _taken_over(self, batch: Batch, kept: Sequence[Batch], changed: list[Group]) -> bool:
        for other in kept:
            try:
                if other.join(batch):
                    return True
            except Exception as error:
                changed += [*other.lose(error), *batch.lose(error)]  # both may be half joined
                return True
        return False

    def _admit(self) -> list[Group]:
        """Let waiting groups begin, in their order, while there is room; returns those for which there never is."""
        failed = []
        going = [group for group in self.running if not group.done]
        rows = sum(group.width for group in going)
        while self._waiting:
            group = self._waiting[0]
            if (problem := self._too_large(group)) is not None:
                self._waiting.popleft().finish(problem)
                failed.append(group)
                continue
            if going and self._most_rows is not None and rows + group.width > self._most_rows:
                break
            if self.beginnings is not None and self._cache_bytes is not None:
                if going and self._column_bytes is None:
                    break
                if any(one.contexts[0].ids == group.contexts[0].ids for one in self._reading):
                    break  # its beginning is known in a few steps
                # every row of a batch has the columns of the longest
                needed = self._bytes_of(rows + group.width, max(map(_longest, (*going, group))) + BLOCK)
                if going and needed > self._cache_bytes:
                    break
                self.beginnings.shrink(self._cache_bytes - needed)
            self._waiting.popleft()
            exact = self._rows is not None
            self._reading[group] = read(self.model, group, self.beginnings, exact, lambda: bool(self._batches))
            going.append(group)
            rows += group.width
        return failed

    def _bytes_of(self, rows: int, columns: int) -> int:
        """Memory of the keys and values of so many rows, in slots those that these are rounded up to."""
        if self._record is not None:
            rows, columns = bucket(rows), columns_of(columns)
        return rows * columns * (self._column_bytes or 0)

    def _too_large(self, group: Group) -> UnsupportedError | None:
        """Why there is never room for a group, if there is none."""
        needed = self._bytes_of(group.width, _longest(group))
        if self._cache_bytes is None or needed <= self._cache_bytes:
            return None
        return UnsupportedError(
            f"the keys and values of this reply may take {needed / MB:,.1f} MB, more than the {self._cache_bytes / MB:,.1f} MB "
            "that the server has for them (--cache-gb): ask for fewer tokens or beams"
        )

    @torch.no_grad()
    def _read(self) -> list[Group]:
        """Read on in the prompts that have begun; returns the groups whose prompts cannot be read.

        While rows wait for their next token, so much is read as one piece of a prompt takes, in turn: a short prompt
        does not wait for a long one.
        """
        failed, left = [], reading.PIECE
        for group in list(self._reading):
            if left <= 0 and self._batches:
                break
            left -= max(len(context.ids) for context in group.contexts)
            try:
                found = None if group.done else next(self._reading[group])
                if found is not None:
                    self._column_bytes = getattr(found.state, "column_bytes", 0)
                    if (problem := self._too_large(group)) is not None:
                        raise problem
                    self._batches.append(Batch(self.model, group, found, self._rows is not None, self._record))
            except Exception as error:
                if not isinstance(error, HanmoError) and not out_of_memory(error):
                    raise
                group.finish(error)
                failed.append(group)
            else:
                if found is None and not group.done:
                    self._reading[group] = self._reading.pop(group)
                    continue
            del self._reading[group]
        return failed


def free_memory(device: torch.device) -> int:
    """Bytes that are free: of a CUDA device, or else of the machine; 4 GB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text(encoding="ascii")) if info.is_file() else None
    return 1024 * int(found[1]) if found else 4 * GB


def _longest(group: Group) -> int:
    """Tokens of the longest prompt and reply."""
    return max(len(context.ids) for context in group.contexts) + group.settings.max_new_tokens
