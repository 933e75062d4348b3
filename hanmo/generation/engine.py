"""The one decode loop: every reply of chat, generate, rollouts, evaluation and serving is decoded here.

Groups of replies join and leave between steps. Shape suffixes: R rows of a batch, P position dimensions, V vocabulary.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hanmo.errors import ConfigError, HanmoError, UnsupportedError, out_of_memory
from hanmo.families.base import OpenedModel
from hanmo.generation.draws import Place
from hanmo.generation.group import Group, make_group, score_together
from hanmo.generation.reading import Beginnings, Read, read
from hanmo.generation.settings import Settings
from hanmo.rows import Context, Prompt

GB = 2**30
FREE_SHARE = 4  # free rows are dropped once they are a quarter: that copies the state of the others


class Engine:
    """Decodes groups of replies side by side. Not thread-safe; the caller puts the network into ``evaluating`` mode.

    Args:
        most_rows: rows that are decoded at a time, beside those of a group that is alone; None: any number.
        rows: exactly so many rows in every step, each of which attends to its own keys only: on a CPU a reply then has
            the same bits in any company.
        cache_bytes: memory for keys and values: of the replies that are decoded, with their longest length, and of prompts
            that have been read, to go on from. None: no limit, and every prompt is read from its first token.
    """

    def __init__(
        self,
        opened: OpenedModel,
        most_rows: int | None = None,
        rows: int | None = None,
        cache_bytes: int | None = None,
    ):
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
    def waiting(self) -> int:
        return len(self._waiting)

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
        for batch in self._batches:
            batch.follow()
        self._batches = self._joined()
        changed = [group for batch in self._batches for group in batch.feed()]
        changed += self._admit() + self._read()
        for batch in self._batches:
            changed += batch.draw()
        return changed

    def _joined(self) -> list[Batch]:
        """The batches that go on, those in one whose states can be."""
        kept: list[Batch] = []
        for batch in self._batches:
            if batch.groups and not any(other.join(batch) for other in kept):
                kept.append(batch)
                if self._rows is not None:
                    batch.widen(self._rows)
        return kept

    def _admit(self) -> list[Group]:
        """Let waiting groups begin, in their order, while there is room; returns those for which there never is."""
        failed = []
        going = [group for group in self.running if not group.done]
        rows, used = sum(group.width for group in going), sum(map(self._bytes, going))
        while self._waiting:
            group = self._waiting[0]
            needed = self._bytes(group)
            if going and self._most_rows is not None and rows + group.width > self._most_rows:
                break
            if self.beginnings is not None and self._cache_bytes is not None:
                if going and (used + needed > self._cache_bytes or self._column_bytes is None):
                    break
                self.beginnings.shrink(self._cache_bytes - used - needed)
            self._waiting.popleft()
            if self._cache_bytes is not None and needed > self._cache_bytes:
                group.finish(UnsupportedError(_no_memory(needed, self._cache_bytes)))
                failed.append(group)
                continue
            self._reading[group] = read(self.model, group, self.beginnings, self._rows is not None)
            going.append(group)
            rows, used = rows + group.width, used + needed
        return failed

    def _bytes(self, group: Group) -> int:
        """Keys and values of a group whose replies take their longest length."""
        longest = max(len(context.ids) for context in group.contexts) + group.settings.max_new_tokens
        return group.width * longest * (self._column_bytes or 0)

    @torch.no_grad()
    def _read(self) -> list[Group]:
        """Read on in every prompt that has begun; returns the groups whose prompts cannot be read."""
        failed = []
        for group in list(self._reading):
            try:
                found = None if group.done else next(self._reading[group])
                if found is not None:
                    self._batches.append(Batch(self.model, group, found, self._rows is not None))
                    self._column_bytes = getattr(found.state, "column_bytes", 0)
            except Exception as error:
                if not isinstance(error, HanmoError) and not out_of_memory(error):
                    raise
                group.finish(error)
                failed.append(group)
            else:
                if found is None and not group.done:
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


def _no_memory(needed: int, most: int) -> str:
    return (
        f"the keys and values of this reply may take {needed / GB:.2f} GB, more than the {most / GB:.2f} GB there are: ask for "
        "fewer tokens, or start with a larger --cache-gb"
    )


def _columns(prompt: Prompt) -> int:
    """The tokens that the decoder reads."""
    name = "decoder_input_ids" if "decoder_input_ids" in prompt.inputs else "input_ids"
    mask_T = prompt.inputs.get(name.replace("input_ids", "attention_mask"), torch.ones_like(prompt.inputs[name]))
    return len(mask_T) - int(mask_T.bool().long().argmax())


def joinable(state: Any) -> bool:
    """Whether rows of other states can join this one; a state needs ``take`` alone, and ``put`` and its like for this."""
    return hasattr(state, "put")


class Batch:
    """Rows of one decoding state: those of each group, and free ones, whose content does not matter.

    ``alone``: each row attends to its own keys only, and free rows are never dropped.
    """

    @torch.no_grad()
    def __init__(self, opened: OpenedModel, group: Group, found: Read, alone: bool = False):
        group.require_ids(found.logits.shape[1])
        self._network, self._alone = opened.network, alone
        device = opened.network.device
        first: dict[tuple[int, ...], int] = {}  # a prompt that several replies share was read once
        places = [first.setdefault(tuple(context.ids), len(first)) for context in group.contexts]
        prompts = [group.prompts[places.index(place)] for place in range(len(first))]
        self._next_RP = torch.stack([prompt.start for prompt in prompts]).to(device)
        self._step_RP = torch.stack([prompt.step for prompt in prompts]).to(device)
        self._used = [_columns(prompt) for prompt in prompts]  # of each row, 0 for free rows
        self._logits_RV, self._state = found.logits, found.state
        rows = [place for place in places for _ in range(group.settings.num_beams)]
        self.groups: dict[Group, list[int]] = {group: list(range(len(rows)))}  # with their rows
        self._take(rows)
        self._tokens: list[int] = []  # that each row is fed next
        group.started, group.reused = True, found.reused

    @property
    def live(self) -> int:
        """Rows of groups."""
        return sum(map(len, self.groups.values()))

    def draw(self) -> list[Group]:
        """Let every group draw from the logits of its rows; returns the groups."""
        everything = list(range(len(self._logits_RV)))
        logits = {
            group: self._logits_RV if rows == everything else self._logits_RV[rows]
            for group, rows in self.groups.items()
        }
        scored = {} if self._alone else score_together(logits)  # the bits of a row may depend on how many there are
        for group in self.groups:
            try:
                group.advance(logits[group], scored.get(group))
            except HanmoError as error:
                group.finish(error)
        return list(self.groups)

    @torch.no_grad()
    def follow(self) -> None:
        """Let every group have the rows that its next tokens continue, in place; groups that are done leave."""
        sources, tokens = list(range(len(self._used))), [0] * len(self._used)
        moved, freed = False, set[int]()
        for group in list(self.groups):
            rows = self.groups.pop(group)
            wanted = [rows[row] for row, _ in group.next]
            in_order = sorted(set(wanted)) == wanted
            moved |= not in_order
            going = wanted if in_order else rows[: len(wanted)]
            for row, source, (_, token) in zip(going, wanted, group.next, strict=True):
                sources[row], tokens[row] = source, token
            freed |= set(rows) - set(going)
            if going:
                self.groups[group] = going
        self._tokens = tokens
        if self.groups and not self._alone and (len(self._used) - self.live) * FREE_SHARE >= len(self._used):
            self._keep([row for rows in self.groups.values() for row in rows], sources)
            return
        if moved:
            self._take(sources)
        self._free(freed)

    def _keep(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Drop all other rows; ``sources``: the row that each of them continues."""
        self._take([sources[row] for row in rows])
        self._tokens = [self._tokens[row] for row in rows]
        places = iter(range(len(rows)))
        self.groups = {group: [next(places) for _ in own] for group, own in self.groups.items()}

    def join(self, other: Batch) -> bool:
        """Take over the rows of another batch; False if the states do not go together. Both have followed."""
        if not self._shares_rows or not self._state.joins(other._state):
            return False
        own = [row for rows in other.groups.values() for row in rows]
        free = [row for row, used in enumerate(self._used) if not used]
        if len(free) < len(own):
            if self._alone:
                return False
            self.widen(len(self._used) + len(own) - len(free))
            free = [row for row, used in enumerate(self._used) if not used]
        other._keep(own, range(len(other._used)))
        rows = free[: len(own)]
        self._state.put(rows, other._state)
        self._next_RP[rows], self._step_RP[rows] = other._next_RP, other._step_RP
        for row, used, token in zip(rows, other._used, other._tokens, strict=True):
            self._used[row], self._tokens[row] = used, token
        self.groups |= {group: [rows[row] for row in places] for group, places in other.groups.items()}
        return True

    @property
    def _shares_rows(self) -> bool:
        """Whether rows of other batches can join, without a difference to the bits if they must stay alone."""
        return joinable(self._state) and (self._state.attends_alone or not self._alone)

    def widen(self, rows: int) -> None:
        """Add free rows, up to this number in all."""
        before = len(self._used)
        if rows <= before or not self._shares_rows:
            return
        self._take([*range(before), *[0] * (rows - before)])
        self._tokens += [0] * (rows - before)
        self._free(range(before, rows))

    @torch.no_grad()
    def feed(self) -> list[Group]:
        """Give every row its next token, and compute the logits after it; returns the groups for which memory ran out."""
        ids_R1 = torch.tensor(self._tokens, device=self._next_RP.device)[:, None]
        try:
            if joinable(self._state):
                self._state.settle(self._used, self._alone)
            logits_R1V = self._network.step(ids_R1, self._next_RP[:, :, None], self._state)
        except Exception as error:
            if not out_of_memory(error):
                raise
            lost, self.groups = list(self.groups), {}  # the state is of no use any more
            for group in lost:
                group.finish(error)
            return lost
        self._logits_RV = logits_R1V[:, -1].float()
        self._next_RP = self._next_RP + self._step_RP
        self._used = [used + 1 if used else 0 for used in self._used]
        return []

    def _free(self, rows: Collection[int]) -> None:
        if rows:
            for row in rows:
                self._used[row] = 0
            self._step_RP[list(rows)] = 0  # their positions must not run out

    def _take(self, rows: Sequence[int]) -> None:
        """Continue with these rows; a row may be taken more than once."""
        if list(rows) == list(range(len(self._used))):
            return
        index = torch.tensor(rows, device=self._next_RP.device)
        self._state = self._state.take(index)
        self._logits_RV = self._logits_RV[index]
        self._next_RP, self._step_RP = self._next_RP[index], self._step_RP[index]
        self._used = [self._used[row] for row in rows]
