"""Turns dialogues into EVA's encoder contexts and decoder targets.

Every turn of a context ends with ``<sep>`` and the encoder's input with ``<s_0>``, which also starts the decoder.
Context ids may hold a ``<s_0>``: the ids after it are the given beginning of the reply. No text encodes to ``<s_0>``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from random import Random
from typing import Any, ClassVar

import torch

from hanmo.errors import UnsupportedError
from hanmo.families.base import Export, Family
from hanmo.families.decoding import LogitsProcessor, SearchConventions
from hanmo.families.eva import original_format
from hanmo.families.eva.decoding import EvaLogitsProcessor, Vocabulary, read_antonyms
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.families.stops import Stop
from hanmo.nn.causal import example_numbers, joined
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text
from hanmo.rows import IGNORE, Context, Part, Prompt, Row, token_inputs

CHAT_TURNS = 8  # utterances that a chat looks back at


@dataclass
class EvaFamily(Family):
    """EVA 1.0 and 2.0. It learns from turns alone; a system text counts as the first turn."""

    name = "eva"
    config_class = EvaConfig
    network_class = EvaModel
    tokenizer_class = EvaTokenizer
    original_format: ClassVar[Any] = original_format
    # All beams start equal, so the search has ties that rounding decides (specification, 7.4).
    published_conventions = SearchConventions(
        first_beam_only=False,
        length="without_stop",
        lookahead=0,
        stop_is_open=True,
        tie=1e-5,
        temperature_again=True,
        keeps_finished=True,
        cut=-10000.0,
    )
    chat_limit = 128
    asset_files: ClassVar[dict[str, str]] = {"antonyms": "antonym/antonym.txt"}
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "wi_0", "wi_1", "wo")
    packs = True
    exceeds_fp16 = True  # the product of the gated feed-forward, as of other networks in the form of T5 v1.1

    config: EvaConfig
    tokenizer: EvaTokenizer

    def __post_init__(self) -> None:
        # The original's configuration has no ids: they come from the vocabulary.
        self.config.pad_token_id = self.tokenizer.pad_token_id
        self.config.eos_token_id = self.tokenizer.sep_token_id
        self.config.decoder_start_token_id = self.tokenizer.bos_token_id

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        return (Stop(self.tokenizer.sep_token_id, ("vocabulary's <sep>",)),)

    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        """One row: the last turn as target; as context the turns before it, from the newest backwards as long as they fit.

        No row if no turn fits, or the target does not. A single turn is context for two ``<unk>``, as published.
        """
        record = _with_turns(record)
        turns, opening = self._turns(record), self._opening(record)
        if isinstance(record, PromptResponse):
            target = self.encode(record.response)
        else:
            target = turns.pop() if len(turns) > 1 else [self.tokenizer.unk_token_id] * 2
        context: list[int] = []
        for turn in reversed(turns):
            if len(turn) + len(context) + 2 > limit:
                break
            context = [*turn, self.tokenizer.sep_token_id, *context]
        if not context or len(opening) + len(target) >= (limit if response_limit is None else response_limit):
            return []
        return [[Part(self._given(context, opening), False), Part(tuple(target), True)]]

    def row(self, parts: Sequence[Part], stop: bool = True, feed_stop: bool = False) -> Row:
        """The unscored parts at the beginning are the context, with the beginning of the reply after ``<s_0>``.

        Weights sum to 1 over a row: the published loss is the mean over samples of the mean over a sample's tokens.
        """
        places = [place for place, part in enumerate(parts) if part.scored]
        first = places[0] if places else len(parts)
        context, opening = self._split([id_ for part in parts[:first] for id_ in part.ids])
        decoder = [self.tokenizer.bos_token_id, *opening]
        labels = [IGNORE] * len(opening)
        for part in parts[first:]:
            decoder += part.ids
            labels += part.ids if part.scored else [IGNORE] * len(part.ids)
        labels.append(self.tokenizer.sep_token_id if stop and parts[-1].scored else IGNORE)
        if feed_stop:
            decoder.append(self.tokenizer.sep_token_id)
            labels.append(IGNORE)
        inputs = token_inputs([*context, self.tokenizer.bos_token_id]) | {"decoder_input_ids": torch.tensor(decoder)}
        row = Row.of(inputs, labels)
        return replace(row, weights=row.weights / row.weights.sum().clamp_min(1))

    def prompt(self, context_ids: Sequence[int]) -> Prompt:
        context, opening = self._split(context_ids)
        start = self.tokenizer.bos_token_id
        inputs = token_inputs([*context, start]) | token_inputs([start, *opening], "decoder_")
        return Prompt(inputs, torch.tensor([1 + len(opening)]), torch.tensor([1]), self.stop_ids)

    def context(self, record: Record, limit: int) -> Context:
        """From the newest of the last 8 turns backwards, every turn that still fits, as published."""
        record = _with_turns(record)
        turns, opening = [[*turn, self.tokenizer.sep_token_id] for turn in self._turns(record)], self._opening(record)
        seen: list[int] = []
        for turn in reversed(turns[-CHAT_TURNS:]):
            if len(seen) + len(turn) + 1 <= limit:
                seen = turn + seen
        full_ids = [id_ for turn in turns for id_ in turn]
        return Context(self._given(seen, opening), (*full_ids, *opening))

    def cloze(self, before: str, options: Sequence[str], after: str = "") -> list[list[Part]]:
        """The text before the gap is a turn; the option and the text after it are the reply."""
        context = Part((*self.encode(before), self.tokenizer.sep_token_id), False)
        return [[context, Part(tuple(self.encode(option + after)), True)] for option in options]

    def pretrain(self, parts: Sequence[Part], rng: Random, objectives: Mapping[str, float] | None = None) -> Row:
        """EVA is pretrained as it is fine-tuned, on more dialogues: there is no objective for running text."""
        raise UnsupportedError(_NO_TEXT)

    def pack(self, rows: Sequence[Row]) -> Row:
        """Concatenated contexts and concatenated replies; both masks hold the number of the example, from 1 on."""
        contexts, replies = ([row.inputs[name] for row in rows] for name in ("input_ids", "decoder_input_ids"))
        encoder = {"input_ids": torch.cat(contexts), "attention_mask": example_numbers(contexts)}
        decoder = {"decoder_input_ids": torch.cat(replies), "decoder_attention_mask": example_numbers(replies)}
        return joined(rows, encoder | decoder)

    def decode(self, ids: Sequence[int]) -> str:
        """Joined tokens; special tokens appear by name."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def as_transformers(self) -> Export:
        from hanmo.families.eva.export import t5_tensors, write_t5

        return Export(t5_tensors(self.config), partial(write_t5, self.config, self.tokenizer))

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        return (*super().suppressed_ids, self._vocabulary.unknown_id)

    def logits_processor(self, settings: Any, contexts: Sequence[Sequence[int]]) -> LogitsProcessor | None:
        """EVA's score rules; that of antonyms applies where the model has a file of them."""
        return EvaLogitsProcessor(self._vocabulary, settings, contexts)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        path = self.assets.get("antonyms")
        return Vocabulary(self.tokenizer, read_antonyms(path) if path else ())

    def _turns(self, record: Dialogue | PromptResponse) -> list[list[int]]:
        """The ids of every turn without ``<sep>``; for a prompt with its response, those of the prompt."""
        if isinstance(record, PromptResponse):
            turns = [self.encode(record.prompt)]
        else:
            pairs = zip(record.turns, record.ids or (None,) * len(record.turns), strict=True)
            turns = [self.encode(text) if ids is None else list(ids) for text, ids in pairs]
        return [self.encode(record.system), *turns] if record.system else turns

    def _opening(self, record: Dialogue | PromptResponse) -> list[int]:
        return self.encode(record.prefix) if isinstance(record, PromptResponse) else []

    def _given(self, context: Sequence[int], opening: Sequence[int]) -> tuple[int, ...]:
        return (*context, self.tokenizer.bos_token_id, *opening) if opening else tuple(context)

    def _split(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The ids for the encoder, and the ids of the beginning of the reply."""
        ids, start = list(ids), self.tokenizer.bos_token_id
        place = ids.index(start) if start in ids else len(ids)
        return ids[:place], ids[place + 1 :]


def _with_turns(record: Record) -> Dialogue | PromptResponse:
    if isinstance(record, Text):
        raise UnsupportedError(f"{record.where}: {_NO_TEXT}" if record.where else _NO_TEXT)
    return record.best() if isinstance(record, ScoredAnswers) else record


_NO_TEXT = (
    "EVA learns from dialogues, not from running text; give turns separated by tabs (where lines are taken for text: "
    'plain=dialogue), or {"prompt": …, "response": …}'
)

FAMILY = EvaFamily
