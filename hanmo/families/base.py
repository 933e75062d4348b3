"""The Family interface: everything that differs between architectures, and nothing else.

Whatever the architecture, an example is a Row: the model's inputs and, on the axis where the model predicts,
``labels[t]`` = the token that the logits at ``t`` must predict and ``weights[t]`` = how much it counts. Shifting,
decoder starts, mask tokens and two-dimensional positions are settled here, once; every stage after that is the
same code for all families.

Shape suffixes: B batch, R decoding rows, T input tokens, A predicting axis, P position dimensions, q new tokens.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hanmo.errors import UnsupportedError
from hanmo.families.stops import Stop
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text

IGNORE = -100  # a label that is not scored


@dataclass(frozen=True)
class Part:
    """A piece of an example as token ids; ``scored``: the model is to learn it, or is judged on it."""

    ids: tuple[int, ...]
    scored: bool


@dataclass(frozen=True)
class Row:
    """One example, ready for the model.

    Attributes:
        inputs: keyword arguments of the model's forward for one example, without the batch axis: (T,), (A,), (P, A)
            or scalars; always with an ``attention_mask`` of ones over the input tokens.
        labels: (A,) int64, ``IGNORE`` where nothing is scored.
        weights: (A,) fp32, zero where nothing is scored. 1 everywhere makes the loss a mean over tokens.
        end: index on A of the last real input, where a reward model reads its value.
        stream: rows of the same stream are consecutive segments of one text (families with memory), else None.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor
    end: int
    stream: int | None = None

    @property
    def size(self) -> int:
        """Places on all axes: rows of similar size need little padding when they share a batch."""
        return len(self.inputs["attention_mask"]) + len(self.labels)


@dataclass(frozen=True)
class Prompt:
    """What generation starts from: the inputs of ``prefill`` for one example and how positions go on.

    The k-th new token (k = 0, 1, …) is fed at position ``start + k * step``, both (P,) int64.
    """

    inputs: dict[str, Tensor]
    start: Tensor
    step: Tensor
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """The part of a conversation the model sees (``ids``) and all of it (``unabridged``, for score rules)."""

    ids: tuple[int, ...]
    unabridged: tuple[int, ...]


@dataclass(frozen=True)
class DecodingForm:
    """The conventions by which implementations of sampling and beam search differ. The defaults are ours.

    Attributes:
        first_beam_only: only the first beam is alive before the first step; otherwise all beams start equal.
        length: what a beam's length counts. "said": generated ids with the stop token; "words": without it;
            "whole": the prompt's width and the generated ids without the stop token.
        lookahead: tokens added to the length when it is asked whether open beams can still win.
        stop_is_open: a beam that has just stopped counts as open when that is asked.
        tie: relative difference up to which two scores are equal there.
        temperature_again: sampled beams divide their running scores by the temperature at every step.
        keeps_finished: finished beam searches stay in the batch, filled with padding.
        cut: the score of tokens that top-k or top-p leaves out.
    """

    first_beam_only: bool = True
    length: Literal["said", "words", "whole"] = "said"
    lookahead: int = 1
    stop_is_open: bool = False
    tie: float = 0.0
    temperature_again: bool = False
    keeps_finished: bool = False
    cut: float = float("-inf")


# Beam search up to transformers 4.38, by which the PanGu and GLM ports of 2023 decode.
TRANSFORMERS_4_31 = DecodingForm(length="whole", stop_is_open=True)


class Rules(Protocol):
    """Score rules of a family: bans and penalties that depend on what has been said.

    Called once per decoding step. Rows are independent of each other unless a published flaw says otherwise.

    Args:
        generated: for each of R rows the ids generated so far.
        sources: for each row the index of the context it continues.
        scores_RV: fp32; changed in place and returned.
    """

    def __call__(self, generated: Sequence[Sequence[int]], sources: Sequence[int], scores_RV: Tensor) -> Tensor: ...


@dataclass
class Family(ABC):
    """One architecture at work: how records become ids and ids become rows, for one opened model.

    Class attributes are the folder's contents, by which checkpoints/ finds its way; instances hold the
    configuration and the tokenizer of one model.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[PretrainedConfig]]
    network_class: ClassVar[type[Any]]
    tokenizer_class: ClassVar[type[PreTrainedTokenizerBase]]
    legacy: ClassVar[ModuleType]  # SIZES, LAYOUTS, read_config: see families/tables.py
    #: value that fills a shorter row up, by name of the input; 0 for every name not listed
    padding: ClassVar[dict[str, int]] = {}
    #: several examples may share one row without seeing each other: see ``pack``
    packs: ClassVar[bool] = False
    #: rows of one stream follow each other and carry memory
    streams: ClassVar[bool] = False
    #: embeddings may have more rows than the vocabulary has tokens, up to a multiple of this; 1: never, 0: any number
    vocab_padded_to: ClassVar[int] = 1
    #: files of the checkpoint's owner that score rules read, by role: where they lie in the folder of rules
    rule_files: ClassVar[dict[str, str]] = {}
    #: how the original decodes, for settings.published
    published_decoding: ClassVar[DecodingForm] = DecodingForm()
    #: tokens of a conversation that a chat shows the model
    chat_limit: ClassVar[int] = 512
    #: names of the linear modules that LoRA adapts
    lora_targets: ClassVar[tuple[str, ...]] = ()
    #: how a gap in a text is written for networks that fill gaps; the others go on where a text ends
    blank: ClassVar[str] = ""
    #: ways in which ``pretrain`` draws what is learned of a text, and how often each; empty where nothing is drawn
    objectives: ClassVar[dict[str, float]] = {}

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    #: the ``rule_files`` that this model has, by role: paths
    assets: dict[str, str] = field(default_factory=dict)
    #: the content of the model folder's generation_config.json
    generation: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        """The tokens that end a reply, each with the files that name it; rows predict the first one."""
        return (Stop(self.tokenizer.eos_token_id, ("tokenizer's eos_token",)),)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(stop.id for stop in self.stops)

    @property
    def stop_id(self) -> int:
        """The token that rows predict where a reply ends.

        Raises:
            UnsupportedError: the model names none.
        """
        return self.stop_ids[0]

    @property
    def spare_ids(self) -> range:
        """Rows of the embedding that stand for no token. The originals may draw them; we do so only as published."""
        return range(len(self.tokenizer), self.config.get_text_config().vocab_size)

    @property
    def never_said(self) -> tuple[int, ...]:
        """Ids that sampling never draws, whatever the context and the settings."""
        return tuple(self.spare_ids)

    @abstractmethod
    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        """A record as token ids: one list of parts per row it makes; none if it cannot be made to fit.

        Args:
            limit: tokens of a row; for encoder-decoders, of the encoder's input.
            response_limit: tokens of the decoder's input where that is an axis of its own; ``limit`` if not given.

        Raises:
            UnsupportedError: the record is of a kind this family cannot learn from.
        """

    @abstractmethod
    def row(self, parts: Sequence[Part], stop: bool = True, closed: bool = False) -> Row:
        """Ids to a row, without touching text. Rollouts and candidate scoring enter here.

        Args:
            stop: the stop token is to be predicted after the last part (if that is scored).
            closed: the stop token is fed as well, so that ``end`` is its place (reward models).
        """

    @abstractmethod
    def prompt(self, context_ids: Sequence[int]) -> Prompt:
        """The start of generation after the unscored parts' ids."""

    def stack_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The inputs of ``prefill`` for several prompts: padded on the left, so that all rows end in the same column."""
        return stack([prompt.inputs for prompt in prompts], self.padding, left=True)

    @abstractmethod
    def context(self, record: Record, limit: int) -> Context:
        """The conversation so far (a record whose last turn is the user's) as context ids for ``prompt``."""

    def cloze(self, before: str, options: Sequence[str], after: str = "") -> list[list[Part]]:
        """A text with a gap and what may stand in it: parts for each option, all with the same unscored context.

        Here the whole text is encoded once for each option, since a boundary of texts need not be one of ids. The ids
        with which all of them begin are the context; everything from the first difference on is scored. Families
        that fill gaps, or read the context with an encoder, score the option (and what follows the gap) after it.
        """
        rows = [self.parts(Text(before + option + after), sys.maxsize)[0] for option in options]
        return split_at_difference([[id_ for part in parts for id_ in part.ids] for parts in rows])

    def published_length(self, text: str) -> int:
        """How long a text is by the count of the published evaluation, which is not always one of ids."""
        return len(self.tokenizer.tokenize(text))

    def next_blank(self, context_ids: Sequence[int], answer: Sequence[int]) -> tuple[int, ...] | None:
        """The context for the next blank once this one is answered; None if there is none, as for most families."""
        return None

    def pretrain(self, parts: Sequence[Part], rng: Random, objectives: Mapping[str, float] | None = None) -> Row:
        """A piece of a document as a row of the family's own pretraining objective; next-token prediction by default.

        Args:
            parts: as ``parts`` makes them of running text; an empty part that is not scored ends a piece after which
                the document goes on.
            rng: for what is drawn.
            objectives: how often each of the family's ``objectives`` is drawn; those of the family if None.
        """
        return self.row(parts)

    def pack(self, rows: Sequence[Row]) -> Row:
        """Several rows as one, in which each is scored as it is alone; for families with ``packs``."""
        raise UnsupportedError(f"{self.name} cannot keep examples apart that share a row; train without packing")

    def segments(self, documents: Iterable[Sequence[Part]], length: int) -> list[Row]:
        """Documents laid end to end as rows of ``length`` tokens, in order; for families with ``streams``.

        Row i + 1 goes on where row i ends. Whoever feeds them gives each one ``memory`` (() for the first), takes
        ``RowOutput.memory`` for the next row of the same stream, and lets the place of a row in the batch be its
        stream: data/streams.py says which rows make up a batch. The rows' inputs keep documents apart.

        Raises:
            UnsupportedError: the network carries no memory.
        """
        raise UnsupportedError(f"{self.name} carries no memory from row to row; train on rows without streams")

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def as_transformers(self) -> Export:
        """What a folder consists of that plain transformers loads without hanmo.

        Raises:
            UnsupportedError: transformers has no such architecture.
        """
        raise UnsupportedError(
            f"transformers has no architecture that computes what {self.name} does; convert without --to hf: "
            "after `import hanmo` transformers loads that folder too"
        )

    def rules(self, settings: Any, contexts: Sequence[Sequence[int]]) -> Rules | None:
        """Score rules for ``settings`` (generation.settings.Settings) over unabridged contexts; none by default."""
        return None


@dataclass(frozen=True)
class Export:
    """A model as one of transformers' own.

    Attributes:
        tensors: by the names of that architecture: ours, and the number that it is multiplied with.
        write: puts what is not weights into a folder, for weights of a dtype; returns remarks for the user.
    """

    tensors: dict[str, tuple[str, float]]
    write: Callable[[Path, torch.dtype], list[str]]


@dataclass(frozen=True)
class OpenedModel:
    """A network with the family object that speaks its language."""

    network: Any
    family: Family
    source: str  # where it came from, for messages and reports

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.family.tokenizer


def split_at_difference(rows: Sequence[Sequence[int]]) -> list[list[Part]]:
    """Ids that begin alike as a shared context and what each goes on with, at least one id each.

    Raises:
        UnsupportedError: they have nothing in common, so that the first id would be predicted from nothing.
    """
    shared, shortest = 0, min(map(len, rows))
    while shared < shortest - 1 and all(row[shared] == rows[0][shared] for row in rows):
        shared += 1
    if not shared:
        raise UnsupportedError(
            "nothing stands before the options, so that their first token would be predicted from nothing; "
            "let the text begin with something they share"
        )
    return [[Part(tuple(row[:shared]), False), Part(tuple(row[shared:]), True)] for row in rows]


def as_pair(record: Record, waiting: bool = False, separator: str = "\n") -> PromptResponse:
    """A record as one prompt and its response, for families that know no turns: what was said so far, a line each.

    The system message is the prompt's first line; of scored answers the best one is the response.

    Args:
        waiting: a dialogue's last turn is the user's and the response is still to come.
        separator: what stands between turns instead of a line break.
    """
    assert not isinstance(record, Text), "running text has no prompt"
    if isinstance(record, ScoredAnswers):
        record = replace(record.best(), prompt=separator.join((*record.history, record.prompt)))
    if isinstance(record, Dialogue):
        *said, response = (*record.turns, "") if waiting else record.turns
        record = PromptResponse(separator.join(said), response, system=record.system, where=record.where)
    return replace(record, prompt=f"{record.system}{separator}{record.prompt}", system="") if record.system else record


def collate(rows: Sequence[Row], padding: dict[str, int]) -> dict[str, Tensor]:
    """Rows to one batch, padded on the right: the inputs by name, ``labels`` (B, A) and ``weights`` (B, A)."""
    batch = stack([row.inputs for row in rows], padding)
    batch["labels"] = torch.nn.utils.rnn.pad_sequence([row.labels for row in rows], True, IGNORE)
    batch["weights"] = torch.nn.utils.rnn.pad_sequence([row.weights for row in rows], True, 0.0)
    return batch


def stack(examples: Sequence[dict[str, Tensor]], padding: dict[str, int], left: bool = False) -> dict[str, Tensor]:
    """Inputs of several examples to one batch. Shorter ones are filled on their last axis, on the right or left.

    Training fills on the right; prompts are filled on the left, so that all rows end in the same column.
    """

    def pad(tensor: Tensor, width: int, value: int) -> Tensor:
        missing = width - tensor.shape[-1]
        return torch.nn.functional.pad(tensor, (missing, 0) if left else (0, missing), value=value)

    batch = {}
    for name in examples[0]:
        tensors = [example[name] for example in examples]
        if tensors[0].dim():
            width = max(tensor.shape[-1] for tensor in tensors)
            tensors = [pad(tensor, width, padding.get(name, 0)) for tensor in tensors]
        batch[name] = torch.stack(tensors)
    return batch
