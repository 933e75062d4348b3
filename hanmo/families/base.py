"""The Family interface: everything that differs between architectures, and nothing else."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hanmo.errors import UnsupportedError
from hanmo.families.decoding import LogitsProcessor, SearchConventions
from hanmo.families.stops import Stop
from hanmo.families.weight_map import NO_ORIGINAL
from hanmo.nn.causal import causal_pack, causal_prompt, causal_row
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text
from hanmo.rows import Context, Part, Prompt, Row, common_length, split_at_difference, stack


@dataclass
class Family(ABC):
    """One architecture: how records become ids and ids become rows, for one opened model.

    A decoder-only family gives ``parts`` and ``context``; other forms of rows override ``row`` and ``prompt`` too.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[PretrainedConfig]]
    network_class: ClassVar[type[Any]]
    tokenizer_class: ClassVar[type[PreTrainedTokenizerBase]]
    original_format: ClassVar[Any] = NO_ORIGINAL  # a module: see families/weight_map.py
    #: padding value by name of the input; 0 for every name not listed
    padding: ClassVar[dict[str, int]] = {}
    #: several examples may share one row without seeing each other: see ``pack``
    packs: ClassVar[bool] = False
    #: rows of one stream follow each other and carry memory
    streams: ClassVar[bool] = False
    #: the embedding may have more rows than there are tokens, up to a multiple of this; 1: never, 0: any number
    vocab_padded_to: ClassVar[int] = 1
    #: the network may compute more than fp16 can hold, 65,504
    exceeds_fp16: ClassVar[bool] = False
    #: files beside the weights that the logits processor reads, by role: their paths in the folder of rules
    asset_files: ClassVar[dict[str, str]] = {}
    #: how the original decodes, for settings.published
    published_conventions: ClassVar[SearchConventions] = SearchConventions()
    #: the tokens of a conversation that the model sees in a chat
    chat_limit: ClassVar[int] = 512
    #: names of the linear modules that LoRA adapts
    lora_targets: ClassVar[tuple[str, ...]] = ()
    #: the mark of a gap in a text, for networks that fill gaps; other networks continue a text
    blank: ClassVar[str] = ""
    #: pretraining objectives among which ``pretrain`` draws, with their shares; empty for next-token prediction
    objectives: ClassVar[dict[str, float]] = {}

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    #: the ``asset_files`` that this model has, by role: paths
    assets: dict[str, str] = field(default_factory=dict)
    #: the content of the model folder's generation_config.json
    generation: dict[str, Any] = field(default_factory=dict)
    #: arguments of the chat template, which every rendering gets; set by ``with_template``
    template_arguments: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        """The tokens that end a reply, each with the files that name it; rows predict the first one."""
        return (Stop(self.tokenizer.eos_token_id, ("tokenizer's eos_token",)),)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(stop.id for stop in self.stops)

    @property
    def stop_id(self) -> int:
        """The token that rows predict where a reply ends; UnsupportedError if the model names none."""
        if not self.stop_ids:
            raise UnsupportedError(
                "no token ends a text: neither the chat template nor the tokenizer, config.json or generation_config.json "
                "names one of the vocabulary; set eos_token in tokenizer_config.json"
            )
        return self.stop_ids[0]

    def with_template(self, arguments: Mapping[str, Any]) -> Family:
        """This family with these arguments of its chat template, added to those that it has.

        UnsupportedError if it has no chat template; ConfigError if the template does not use one, or for its value.
        """
        if arguments:
            raise UnsupportedError(
                f"template argument {', '.join(map(repr, arguments))}: this {self.name} model has no chat template; leave it out"
            )
        return self

    def conversation(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Context:
        """The context of messages with calls of tools and their results, as the chat template writes them, never cut.

        ``messages``: in transformers' form, with the arguments of calls as objects. UnsupportedError if the template has no
        place for them.
        """
        raise UnsupportedError(f"tools: this {self.name} model has no chat template that knows them; leave them out")

    def answering_at_once(self) -> Family:
        """This family with prompts after which an answer follows: the block of a template's reasoning is closed."""
        return self

    @property
    def template_mode(self) -> str:
        """The chat template's hash and arguments, for results; "" without a template."""
        return ""

    @property
    def unused_ids(self) -> range:
        """Rows of the embedding without a token. The originals may draw them; we suppress them unless ``published``."""
        return range(len(self.tokenizer), self.config.get_text_config().vocab_size)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that are never sampled, in any context and with any settings: ``unused_ids`` and the family's own."""
        return tuple(self.unused_ids)

    @abstractmethod
    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        """A record as token ids: one list of parts for each row; no rows if it does not fit.

        ``limit``: tokens of a row or of the encoder's input; ``response_limit``: of the decoder's input, ``limit`` if None.
        UnsupportedError if the family cannot learn from records of this type.
        """

    @abstractmethod
    def context(self, record: Record, limit: int) -> Context:
        """The conversation so far (a record whose last turn is the user's) as context ids for ``prompt``."""

    @property
    def positions(self) -> int | None:
        """The tokens that the model has positions for; None: it counts none, or only distances."""
        return getattr(self.config, "max_position_embeddings", None)

    def fitting(self, limit: int, reply: int) -> tuple[int, int]:
        """Numbers of tokens for a context and its reply, shortened to the positions that both share."""
        if self.positions is None:
            return limit, reply
        limit = min(limit, max(self.positions - reply, self.positions // 2))
        return limit, min(reply, self.positions - limit)

    def row(self, parts: Sequence[Part], stop: bool = True, feed_stop: bool = False) -> Row:
        """A row from ids alone, as for rollouts and candidate scoring; next-token prediction by default.

        ``stop``: predict the stop token after a scored last part. ``feed_stop``: it is an input too (for reward models).
        """
        return causal_row(parts, self.stop_id, stop, feed_stop)

    def prompt(self, context_ids: Sequence[int]) -> Prompt:
        """The start of generation after the unscored parts' ids."""
        return causal_prompt(context_ids, self.stop_ids)

    def stack_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The inputs of ``prefill`` for several prompts: padded on the left, so that all rows end in the same column."""
        return stack([prompt.inputs for prompt in prompts], self.padding, left=True)

    def cloze(self, before: str, options: Sequence[str], after: str = "") -> list[list[Part]]:
        """Parts for each option in the gap of a text, all with the same unscored context.

        Tokens may cross the boundary of two texts: whole texts are encoded, and their common first ids are the context.
        """
        rows = [self.parts(Text(before + option + after), sys.maxsize)[0] for option in options]
        return split_at_difference([[id_ for part in parts for id_ in part.ids] for parts in rows])

    def published_length(self, text: str) -> int:
        """The length of a text as the published evaluation counts it, not always in ids."""
        return len(self.tokenizer.tokenize(text))

    def next_blank(self, context_ids: Sequence[int], answer: Sequence[int]) -> tuple[int, ...] | None:
        """The context for the next blank after the answer to this one; None if there is none, as for most families."""
        return None

    def pretrain(self, parts: Sequence[Part], rng: Random, objectives: Mapping[str, float] | None = None) -> Row:
        """A piece of a document as a row for a pretraining objective; next-token prediction by default.

        ``parts``: of running text, with an empty unscored one at the end if it goes on. ``objectives``: their shares.
        """
        return self.row(parts)

    def pack(self, rows: Sequence[Row]) -> Row:
        """Several rows as one, in which each is scored as it is alone; UnsupportedError without ``packs``."""
        if not self.packs:
            raise UnsupportedError(f"{self.name} cannot keep examples apart that share a row; train without packing")
        return causal_pack(rows)

    def segments(self, documents: Iterable[Sequence[Part]], length: int) -> list[Row]:
        """Concatenated documents as rows of ``length`` tokens, in order; UnsupportedError without ``streams``.

        Row i + 1 continues row i: the caller gives each one the ``RowOutput.memory`` of the row before, () to the first.
        """
        raise UnsupportedError(f"{self.name} carries no memory from row to row; train on rows without streams")

    def prompt_and_answer(self, record: Record) -> tuple[list[int], list[int], int]:
        """The ids of ``as_pair``: the prompt, the answer with its prefix, and the number of ids of the prefix."""
        pair = as_pair(record)
        answer = self.encode(pair.prefix + pair.response)
        return self.encode(pair.prompt), answer, common_length(self.encode(pair.prefix), answer)

    def encode(self, text: str) -> list[int]:
        """A text as ids, without special tokens around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def as_transformers(self) -> Export:
        """A folder that plain transformers loads without hanmo; UnsupportedError if it has no such architecture."""
        raise UnsupportedError(
            f"transformers has no architecture that computes what {self.name} does; convert without --to hf: "
            "after `import hanmo; hanmo.register()` transformers loads that folder too"
        )

    def logits_processor(self, settings: Any, contexts: Sequence[Sequence[int]]) -> LogitsProcessor | None:
        """The family's own processor for ``settings`` (generation.settings.Settings) and the full_ids of contexts."""
        return None


@dataclass(frozen=True)
class Export:
    """A model as transformers has it; ``write`` writes everything but the weights and returns remarks for the user."""

    tensors: dict[str, tuple[str, float]]  # by transformers' name: the name of ours, and the factor to multiply it by
    write: Callable[[Path, torch.dtype], list[str]]  # of the folder and the dtype of its weights


@dataclass(frozen=True)
class OpenedModel:
    """A network and the family object of its configuration and tokenizer."""

    network: Any
    family: Family
    source: str  # the origin of the model, for messages and reports

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.family.tokenizer


def as_pair(record: Record, waiting: bool = False, separator: str = "\n") -> PromptResponse:
    """A record as one prompt and its response, for families without turns: the turns so far, with separators between them.

    The system text is the first turn; of scored answers the best is the response. ``waiting``: the response is to come.
    """
    assert not isinstance(record, Text), "running text has no prompt"
    if isinstance(record, ScoredAnswers):
        record = replace(record.best(), prompt=separator.join((*record.history, record.prompt)))
    if isinstance(record, Dialogue):
        *turns, response = (*record.turns, "") if waiting else record.turns
        record = PromptResponse(separator.join(turns), response, system=record.system, where=record.where)
    return replace(record, prompt=f"{record.system}{separator}{record.prompt}", system="") if record.system else record
