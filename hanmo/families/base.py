"""The Family interface: everything that differs between architectures, and nothing else.

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
from hanmo.rows import Context, Part, Prompt, Row, split_at_difference, stack


@dataclass(frozen=True)
class SearchConventions:
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
TRANSFORMERS_4_31 = SearchConventions(length="whole", stop_is_open=True)


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
    original_format: ClassVar[ModuleType]  # SIZES, LAYOUTS, read_config: see families/weight_map.py
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
    published_decoding: ClassVar[SearchConventions] = SearchConventions()
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
        stream: data/rows/documents.py says which rows make up a batch. The rows' inputs keep documents apart.

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
        """Score rules for ``settings`` (generation.settings.Settings) over full_ids contexts; none by default."""
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
