"""Rollouts: replies of the policy to prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from hanmo.data.rows.mixture import Mixture
from hanmo.errors import RecordError, UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import Generation, generate
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, Record, ScoredAnswers, Text, unasked
from hanmo.rows import Context, Part, chunked


@dataclass(frozen=True)
class Question:
    """A record without its response, its context for the policy, and its prompt as text.

    ``fields``: the record as rewards see it: all its fields in the file, and the expected reply as "response".
    """

    record: Record
    context: Context
    prompt: str
    fields: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Sample(Question):
    """A question with a reply of the policy, as ids and as text."""

    generation: Generation
    reply: str

    @property
    def parts(self) -> list[Part]:
        return [Part(self.context.ids, False), Part(self.generation.ids, True)]


class Engine(Protocol):
    """Answers contexts with the policy's current weights: our decode loop, or a client of an inference server.

    Only the ids of its replies are learned from: the trained network computes their log-probabilities. An engine that samples by seed and ``places`` (of the replies in their round, over all processes) gives the same
    replies for any batch size and number of processes.
    """

    def __call__(
        self, contexts: Sequence[Context], settings: Settings, places: Sequence[Place]
    ) -> list[Generation]: ...


class OwnEngine:
    """The decode loop on the network being trained, contexts of similar length together."""

    def __init__(self, opened: OpenedModel, batch_size: int):
        self.opened, self.batch_size = opened, batch_size

    def __call__(self, contexts: Sequence[Context], settings: Settings, places: Sequence[Place]) -> list[Generation]:
        order = sorted(range(len(contexts)), key=lambda number: len(contexts[number].ids))
        replies: dict[int, Generation] = {}
        for chosen in chunked(order, self.batch_size):
            batch, drawn = [contexts[number] for number in chosen], [places[number] for number in chosen]
            replies.update(zip(chosen, generate(self.opened, batch, settings, places=drawn), strict=True))
        return [replies[number] for number in range(len(contexts))]


# Prompts


def question(record: Record, opened: OpenedModel, limit: int) -> Question:
    """The prompt of a record: a dialogue without its last turn (a single turn is the question itself).

    Raises:
        RecordError: it is not a prompt, or the family refuses it.
        UnsupportedError: it does not fit into ``limit``.
    """
    if isinstance(record, Text):
        raise RecordError.at(record.where, str(unasked(record)))
    fields = record.described()
    if isinstance(record, ScoredAnswers):
        record = record.ending("")
    if isinstance(record, Dialogue):
        record = replace(record, turns=record.turns[:-1] or record.turns)
        text = "\n".join(record.turns)
    else:
        record, text = replace(record, response=""), record.prompt + record.prefix
    context = opened.family.context(record, limit)
    if not context.ids:
        raise UnsupportedError(f"{record.where}: the prompt does not fit into limit={limit}")
    return Question(record, context, text, fields=fields)


def prompt_order(count: int, wanted: int, start: int, seed: int, mixture: Mixture | None = None) -> list[int]:
    """``wanted`` places of ``count`` prompts from position ``start`` of an endless sequence, reshuffled every pass."""
    found, mixture = list[int](), mixture or Mixture((count,))
    while len(found) < wanted:
        epoch, place = divmod(start + len(found), mixture.rows)
        order = mixture.order(epoch, seed)
        found += [item % count for item in order[place : place + wanted - len(found)]]
    return found


def rollout_settings(config: Any, opened: OpenedModel, questions: Sequence[Question]) -> Settings:
    """The decoding settings of rollouts; ``suppressed_ids`` are all ids never drawn, and all stop tokens but one.

    The policy is scored without these ids. Otherwise probability taken from other tokens would flow to them unnoticed
    by any reward.
    """
    chosen = Settings(**{"max_new_tokens": 64, **config.generation})
    others = opened.family.prompt(questions[0].context.ids).stop_ids[1:]
    suppressed = {*chosen.suppressed_ids, *others, *opened.family.suppressed_ids}
    return replace(chosen, suppressed_ids=tuple(sorted(suppressed)))


# The reference


@contextmanager
def without_critic(network: Any) -> Iterator[None]:
    """The network without its critic until the block ends."""
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    critic, base.critic = base.critic, None
    try:
        yield
    finally:
        base.critic = critic


class Reference:
    """The policy as it was at the start: a copy, or the network with its first tensors swapped in while it computes."""

    def __init__(self, network: Any, kind: Literal["swap", "copy"]):
        with without_critic(network):
            self._network = network if kind == "swap" else deepcopy(network)
            trained = {name: p for name, p in network.named_parameters() if p.requires_grad} if kind == "swap" else {}
        self._kept = {name: p.detach().clone() for name, p in trained.items() if "value_head" not in name}

    @property
    def bytes(self) -> int:
        """The memory of what is kept."""
        kept = self._kept.values() if self._kept else self._network.parameters()
        return sum(tensor.nbytes for tensor in kept)

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The reference network, until the block ends."""
        with without_critic(self._network):
            self._exchange()
            try:
                yield self._network
            finally:
                self._exchange()

    def _exchange(self) -> None:
        parameters = dict(self._network.named_parameters()) if self._kept else {}
        for name, kept in self._kept.items():
            parameters[name].data, self._kept[name] = kept, parameters[name].data


def scored(values_BA: Tensor, labels_BA: Tensor) -> list[Tensor]:
    """The values at the scored places of every row, one (N,) tensor a row."""
    return [values[labels >= 0] for values, labels in zip(values_BA, labels_BA, strict=True)]
