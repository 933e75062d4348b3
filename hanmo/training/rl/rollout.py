"""Rollouts: replies of the policy to prompts, and their rewards."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from hanmo.checkpoints import open_model
from hanmo.config import named_function
from hanmo.data.rows.mixture import Mixture
from hanmo.errors import ConfigError, RecordError, UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import Generation, generate
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text, unasked
from hanmo.rows import Context, Part, chunked
from hanmo.training.rl.rewards import score_rows


@dataclass(frozen=True)
class Question:
    """A record without its response, its context for the policy, and its prompt as text."""

    record: Record
    context: Context
    prompt: str


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


# Rewards

Reward = Callable[[Sequence[Sample]], Sequence[float]]
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_reward(spec: str, policy: OpenedModel, limit: int, response_limit: int | None, batch_size: int) -> Reward:
    """A reward from its name: ``module:function``, called as function(prompts, replies) -> scores; or a reward model.

    A reward model with the policy's vocabulary scores the generated ids themselves; any other reads the text.
    ConfigError if there is no such function, or the model has no value head.
    """
    if _FUNCTION.fullmatch(spec) and not Path(spec).exists():
        return _function_reward(spec)
    opened = open_model(spec)
    if opened.network.value_head is None:
        raise ConfigError(f"rewards: {spec} has no value head; train one: hanmo train reward MODEL DATA")
    shared = type(opened.family) is type(policy.family) and opened.tokenizer.get_vocab() == policy.tokenizer.get_vocab()

    def score(samples: Sequence[Sample]) -> list[float]:
        finished = [sample.generation.finished for sample in samples]
        if shared:
            return score_rows(opened, [sample.parts for sample in samples], finished, batch_size)
        rows = [opened.family.parts(_with_reply(sample), limit, response_limit) for sample in samples]
        parts = [
            found[0] if found else [Part(opened.family.context(sample.record, limit).ids, False), Part((), True)]
            for found, sample in zip(rows, samples, strict=True)
        ]
        return score_rows(opened, parts, finished, batch_size)

    return score


def _function_reward(spec: str) -> Reward:
    function = named_function(spec, "rewards")

    def score(samples: Sequence[Sample]) -> Sequence[float]:
        scores = function([sample.prompt for sample in samples], [sample.reply for sample in samples])
        if len(scores) != len(samples):
            raise ConfigError(f"rewards: {spec} gave {len(scores)} scores for {len(samples)} replies")
        try:
            numbers = [float(one) for one in scores]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"rewards: {spec} must give a number for every reply: {error}") from None
        bad = next((place for place, number in enumerate(numbers) if not math.isfinite(number)), None)
        if bad is not None:
            raise ConfigError(f"rewards: {spec} gave {numbers[bad]} for the reply {samples[bad].reply[:40]!r}")
        return numbers

    return score


def _with_reply(sample: Sample) -> Record:
    """The record with the policy's reply in place of its own response."""
    record = sample.record
    if isinstance(record, Dialogue):
        return Dialogue((*record.turns, sample.reply), record.system, record.where)
    assert isinstance(record, PromptResponse), "prompts are dialogues or prompts"
    return replace(record, response=sample.reply)


# Prompts


def question(record: Record, opened: OpenedModel, limit: int) -> Question:
    """The prompt of a record: a dialogue without its last turn (a single turn is the question itself).

    Raises:
        RecordError: it is not a prompt, or the family refuses it.
        UnsupportedError: it does not fit into ``limit``.
    """
    if isinstance(record, Text):
        raise RecordError.at(record.where, str(unasked(record)))
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
    return Question(record, context, text)


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
