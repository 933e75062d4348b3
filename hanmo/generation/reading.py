"""Reading prompts: a long one in pieces between the steps of others, and only the part that has not been read before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hanmo.families.base import OpenedModel
from hanmo.generation.group import Group
from hanmo.nn.batching import batching_of
from hanmo.rows import Prompt, common_length

PIECE = 256  # tokens that are read between two steps of the rows that wait
BLOCK = 64  # the same where bits matter: pieces begin at multiples of it, whatever has been read before
SHORTEST = 16  # tokens from which on the beginning of a prompt is worth going on from


@dataclass
class Read:
    """Prompts that have been read."""

    logits: Tensor  # (R, V) fp32, after each prompt
    state: Any  # of decoding
    reused: int = 0  # tokens of the prompt that had been read before


class Beginnings:
    """Decoding states of prompts to go on from; the one that was used least recently leaves when memory is short."""

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self.asked = self.reused = 0  # tokens of prompts so far
        self._kept: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    @property
    def bytes(self) -> int:
        return sum(_bytes(ids, state) for ids, state in self._kept.items())

    def find(self, ids: tuple[int, ...], multiple: int = 1) -> tuple[int, Any]:
        """The longest known beginning, a ``multiple`` of tokens but not all of them: its length, and a state to go on from."""
        best, found = 0, None
        for known in self._kept:
            length = min(common_length(known, ids), len(ids) - 1) // multiple * multiple
            if length > best:
                best, found = length, known
        if found is None or best < SHORTEST:
            return 0, None
        self._kept.move_to_end(found)
        return best, self._kept[found].beginning(best)

    def keep(self, ids: tuple[int, ...], state: Any) -> None:
        """Keep a copy of the state of a prompt, in place of those of its beginnings."""
        if _bytes(ids, state) > self.most_bytes:
            return
        for known in [known for known in self._kept if known == ids[: len(known)]]:
            del self._kept[known]
        self._kept[ids] = state.take(torch.zeros(1, dtype=torch.long, device=state.device))
        self.shrink(self.most_bytes)

    def shrink(self, most: int) -> None:
        """Keep no more than these bytes from now on."""
        self.most_bytes = max(most, 0)
        while self.bytes > self.most_bytes:
            self._kept.popitem(last=False)


def _bytes(ids: tuple[int, ...], state: Any) -> int:
    return len(ids) * state.column_bytes


def read(
    opened: OpenedModel, group: Group, beginnings: Beginnings | None, exact: bool, others: Callable[[], bool]
) -> Iterator[Read | None]:
    """Read a group's prompts, one for each different context; yields None after every piece, and at last the result.

    Args:
        exact: the bits of a prompt's state do not depend on what has been read before.
        others: whether rows wait for their next token; where none do, a prompt is not read in pieces.
    """
    prompts = list(
        {tuple(context.ids): prompt for context, prompt in zip(group.contexts, group.prompts, strict=True)}.values()
    )
    if len(prompts) > 1 or not _in_order(opened.network, prompts[0]):
        yield _whole(opened, prompts)
        return
    [prompt] = prompts
    ids = tuple(prompt.inputs["input_ids"].tolist())
    done, logits_RV = 0, None
    state: Any = None
    if beginnings is not None:
        beginnings.asked += len(ids)
        done, state = beginnings.find(ids, BLOCK if exact else 1)
        beginnings.reused += done
    reused = done
    while done < len(ids):
        piece = BLOCK if exact else PIECE if others() else len(ids)
        end = min(len(ids), (done // piece + 1) * piece)
        logits_RV, state = _piece(opened, prompt, slice(done, end), state)
        done = end
        if done < len(ids):
            yield None
    if beginnings is not None and hasattr(state, "beginning") and state.complete(len(ids)):
        beginnings.keep(ids, state)
    assert logits_RV is not None, "a prompt has tokens"
    yield Read(logits_RV, state, reused)


def _in_order(network: Any, prompt: Prompt) -> bool:
    """Whether the prompt may be read in pieces: no token of it sees a later one, and the state goes on from any place."""
    ids_T, positions_T = prompt.inputs["input_ids"], prompt.inputs.get("position_ids")
    plain = set(prompt.inputs) == {"input_ids", "attention_mask", "position_ids"}
    plain = plain and bool(prompt.inputs["attention_mask"].all())
    return plain and positions_T.shape == ids_T.shape and batching_of(network).continues  # type: ignore[union-attr]


def _whole(opened: OpenedModel, prompts: list[Prompt]) -> Read:
    inputs = {name: value.to(opened.network.device) for name, value in opened.family.stack_prompts(prompts).items()}
    logits_R1V, state = opened.network.prefill(**inputs)
    return Read(logits_R1V[:, -1].float(), state)


def _piece(opened: OpenedModel, prompt: Prompt, place: slice, state: Any) -> tuple[Tensor, Any]:
    """Some tokens of one prompt after those in the state: the logits after the last, and the state."""
    network = opened.network
    inputs = {name: value[place].to(network.device)[None] for name, value in prompt.inputs.items()}
    if state is None:
        logits_1qV, state = network.prefill(**inputs)
    else:
        logits_1qV = network.step(inputs["input_ids"], inputs["position_ids"][:, None], state)
    return logits_1qV[:, -1].float(), state
