"""Rows of many groups of replies in one decoding state.

Shape suffixes: R rows, P position dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hanmo.errors import HanmoError, out_of_memory
from hanmo.families.base import OpenedModel
from hanmo.generation.group import Group, score_together
from hanmo.generation.reading import Read
from hanmo.generation.slots import Record, Slots, bucket, can_be_fixed
from hanmo.rows import Prompt

FREE_SHARE = 4  # free rows are dropped once they are a quarter: that copies the state of the others


def _columns(prompt: Prompt) -> int:
    """The tokens that the decoder reads."""
    name = "decoder_input_ids" if "decoder_input_ids" in prompt.inputs else "input_ids"
    mask_T = prompt.inputs.get(name.replace("input_ids", "attention_mask"), torch.ones_like(prompt.inputs[name]))
    return len(mask_T) - int(mask_T.bool().long().argmax())


def joinable(state: Any) -> bool:
    """Whether rows of other states can join this one; a state needs ``take`` alone, and ``put`` and its like for this."""
    return hasattr(state, "put")


@contextmanager
def _ending(group: Group) -> Iterator[None]:
    """End a group whose settings or network are at fault, and go on."""
    try:
        yield
    except HanmoError as error:
        group.finish(error)


def _place(rows: list[int]) -> slice | list[int]:
    """An index of rows: a slice where they stand side by side, as a list is copied to the device."""
    return slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else rows


class Batch:
    """Rows of one decoding state: those of each group, and free ones, whose content does not matter.

    ``alone``: each row attends to its own keys only, and free rows are never dropped. ``record``: steps are replayed in
    ``Slots``, whose rows are a power of two.
    """

    @torch.no_grad()
    def __init__(
        self, opened: OpenedModel, group: Group, found: Read, alone: bool = False, record: Record | None = None
    ):
        group.require_ids(found.logits.shape[1])
        self._network, self._alone = opened.network, alone
        self._record = record if can_be_fixed(opened.network, found.state) else None
        self._slots: Slots | None = None  # in use while ``_state`` is None
        first: dict[tuple[int, ...], int] = {}  # a prompt that several replies share was read once
        places = [first.setdefault(tuple(context.ids), len(first)) for context in group.contexts]
        prompts = [group.prompts[places.index(place)] for place in range(len(first))]
        # on the host, with the ids that are fed: one copy to the device a step
        self._next_RP = torch.stack([prompt.start for prompt in prompts])
        self._step_RP = torch.stack([prompt.step for prompt in prompts])
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

    def guarded(self, action: Callable[[], list[Group] | None]) -> list[Group]:
        """The groups that an action has changed; if memory runs out in it, all groups, which have ended then."""
        try:
            return action() or []
        except Exception as error:
            return self.lose(error)

    def lose(self, error: Exception) -> list[Group]:
        """End all groups, as the state is of no use any more, because memory has run out; raises any other error."""
        if not out_of_memory(error):
            raise error
        lost, self.groups = list(self.groups), {}
        for group in lost:
            group.finish(error)
        return lost

    @torch.no_grad()
    def draw(self) -> list[Group]:
        """Let every group draw from the logits of its rows; returns the groups. The host waits for the device once."""
        logits = {group: self._logits_RV[_place(rows)] for group, rows in self.groups.items()}
        scored = {} if self._alone else score_together(logits)  # the bits of a row may depend on how many there are
        proposed: dict[Group, Tensor] = {}
        for group in self.groups:
            with _ending(group):
                proposed[group] = group.propose(logits[group], scored.get(group))
        figures = iter(torch.cat([one.flatten() for one in proposed.values()]).tolist() if proposed else [])
        for group, one in proposed.items():
            rows = [list(islice(figures, one.shape[1])) for _ in range(len(one))]
            with _ending(group):
                group.accept(rows)
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
        if self.groups and not self._alone and self._too_wide:
            self._keep([row for rows in self.groups.values() for row in rows], sources)
            return
        if moved:
            self._take(sources)
        self._free(freed)

    @property
    def _too_wide(self) -> bool:
        """Whether so many rows are free that the others go on without them."""
        if self._record is not None:
            return 2 * bucket(self.live) < len(self._used)
        return (len(self._used) - self.live) * FREE_SHARE >= len(self._used)

    def _keep(self, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Drop all other rows; ``sources``: the row that each of them continues."""
        self._take([sources[row] for row in rows])
        self._tokens = [self._tokens[row] for row in rows]
        places = iter(range(len(rows)))
        self.groups = {group: [next(places) for _ in own] for group, own in self.groups.items()}

    def reserve(self, others: Sequence[Batch]) -> None:
        """Make room for all that will join, at once: it copies the state."""
        self._loosen()
        for other in others:
            other._loosen()
        coming = [other for other in others if self._shares_rows and self._state.joins(other._state)]
        missing = sum(other.live for other in coming) - self._used.count(0)
        if self.groups and missing > 0:
            rows = len(self._used) + missing
            self.widen(rows if self._record is None else bucket(rows))

    def join(self, other: Batch) -> bool:
        """Take over the rows of another batch; False if the states do not go together. Both have followed."""
        self._loosen()
        other._loosen()
        if not self._shares_rows or not self._state.joins(other._state):
            return False
        own = [row for rows in other.groups.values() for row in rows]
        free = [row for row, used in enumerate(self._used) if not used]
        if len(free) < len(own):
            if self._alone:
                return False
            wanted = len(self._used) + len(own) - len(free)
            self.widen(wanted if self._record is None else bucket(wanted))
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
        if rows <= before:
            return
        self._loosen()
        if not self._shares_rows:
            return
        self._take([*range(before), *[0] * (rows - before)])
        self._tokens += [0] * (rows - before)
        self._free(range(before, rows))

    @torch.no_grad()
    def feed(self) -> None:
        """Give every row its next token, and compute the logits after it."""
        if self._record is not None:
            self.widen(bucket(len(self._used)))
        fed_RF = torch.cat([torch.tensor(self._tokens)[:, None], self._next_RP], dim=1)
        if self._record is None:
            if joinable(self._state):
                self._state.settle(self._used, self._alone)
            fed_RF = fed_RF.to(self._logits_RV.device)
            logits_R1V = self._network.step(fed_RF[:, :1], fed_RF[:, 1:, None], self._state)
        else:
            self._network.require_positions(self._next_RP)
            logits_R1V = self._slotted(self._record).step(fed_RF)
        self._logits_RV = logits_R1V[:, -1].float()
        self._next_RP = self._next_RP + self._step_RP
        self._used = [used + 1 if used else 0 for used in self._used]

    def _slotted(self, record: Record) -> Slots:
        """The slots with the state in them."""
        if self._slots is not None and self._slots.full:
            self._loosen()
        if self._state is not None:
            self._state.settle(self._used)
            if self._slots is None or not self._slots.takes(self._state):
                rows, dimensions = self._next_RP.shape
                self._slots = Slots(self._network, self._state, rows, dimensions, record)
            self._state = None
        assert self._slots is not None
        return self._slots

    def _loosen(self) -> None:
        """Have the state outside of the slots, to be changed."""
        if self._state is None:
            assert self._slots is not None
            self._state = self._slots.loose()

    def _free(self, rows: Collection[int]) -> None:
        if rows:
            for row in rows:
                self._used[row] = 0
            self._next_RP[list(rows)] = self._step_RP[list(rows)] = 0  # their positions must not run out

    def _take(self, rows: Sequence[int]) -> None:
        """Continue with these rows; a row may be taken more than once."""
        if list(rows) == list(range(len(self._used))):
            return
        self._loosen()
        index = torch.tensor(rows, device=self._logits_RV.device)
        self._state = self._state.take(index)
        self._logits_RV = self._logits_RV[index]
        self._next_RP, self._step_RP = self._next_RP[rows], self._step_RP[rows]
        self._used = [self._used[row] for row in rows]
