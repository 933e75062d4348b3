"""Rewards of answers by a reward model."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from hanmo.checkpoints import open_model
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.nn.finite import require_finite
from hanmo.nn.row_model import evaluating
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers
from hanmo.rows import Part, chunked, collate, unscored
from hanmo.training.rl.rollout import Sample


def score_rows(
    opened: OpenedModel, rows: Sequence[Sequence[Part]], finished: Sequence[bool], batch_size: int
) -> list[float]:
    """The rewards of rows given as parts, read at the stop token of a finished answer, else at the last token.

    Raises:
        ConfigError: the model is no reward model.
        NotANumberError: a reward is no finite number.
    """
    network, family = opened.network, opened.family
    if network.value_head is None:
        raise ConfigError(f"{opened.source}: has no value head; train one: hanmo train reward MODEL DATA")
    made = [family.row(parts, stop=end, feed_stop=end) for parts, end in zip(rows, finished, strict=True)]
    order = sorted(range(len(made)), key=lambda place: len(made[place].labels))
    scores = [0.0] * len(made)
    with evaluating(network):
        for places in chunked(order, batch_size):
            batch = unscored(collate([made[place] for place in places], family.padding))
            output = network(**{name: tensor.to(network.device) for name, tensor in batch.items()})
            ends = torch.tensor([made[place].end for place in places], device=network.device)
            for place, score in zip(places, output.value.gather(1, ends[:, None])[:, 0].tolist(), strict=True):
                scores[place] = score
    require_finite(scores, network)
    return scores


def score_records(
    opened: OpenedModel, records: Sequence[Record], limit: int, response_limit: int | None = None, batch_size: int = 8
) -> list[float | None]:
    """The reward of each record's response; None where it does not fit."""
    found = [opened.family.parts(record, limit, response_limit) for record in records]
    rows = [rows[0] for rows in found if rows]
    scores = iter(score_rows(opened, rows, [True] * len(rows), batch_size))
    return [next(scores) if rows else None for rows in found]


def with_answers(record: Record) -> list[Dialogue | PromptResponse]:
    """The records whose responses are scored: one for each answer of scored answers, else the record itself."""
    if isinstance(record, ScoredAnswers):
        return [record.ending(text) for text, _ in record.answers]
    if isinstance(record, Dialogue) and len(record.turns) < 2:
        raise ConfigError(f"{record.where}: a dialogue of one turn has no reply to score")
    if isinstance(record, Dialogue | PromptResponse):
        return [record]
    raise ConfigError(f"{record.where}: running text has no response to score")


def model_reward(
    model: str, policy: OpenedModel, limit: int, response_limit: int | None, batch_size: int
) -> Callable[[Sequence[Sample]], list[float]]:
    """A reward model as a reward of replies.

    One with the policy's vocabulary scores the generated ids themselves; any other reads the text. ConfigError if the
    model has no value head.
    """
    opened = open_model(model, blank=policy.network.device.type == "meta")
    if opened.network.value_head is None:
        raise ConfigError(f"rewards: {model} has no value head; train one: hanmo train reward MODEL DATA")
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


def _with_reply(sample: Sample) -> Record:
    """The record with the policy's reply in place of its own response."""
    record = sample.record
    if isinstance(record, Dialogue):
        return Dialogue((*record.turns, sample.reply), record.system, record.where)
    assert isinstance(record, PromptResponse), "prompts are dialogues or prompts"
    return replace(record, response=sample.reply)
