"""Turns text into rows of GLM: ``[CLS] … [MASK] … <eos>``, then ``<sop> answer <eop>`` for every mask token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from hanmo.errors import UnsupportedError
from hanmo.families.base import Family, as_pair
from hanmo.families.decoding import TRANSFORMERS_4_31
from hanmo.families.glm import original_format
from hanmo.families.glm.modeling import GlmConfig, GlmModel
from hanmo.families.glm.pretraining import draw_document, draw_objective, draw_sentences, draw_spans
from hanmo.families.glm.tokenization import GlmTokenizer
from hanmo.families.stops import CONFIG, Stop, collect
from hanmo.nn.causal import causal_pack
from hanmo.records import Dialogue, Record, Text
from hanmo.rows import IGNORE, Context, Part, Prompt, Row, token_inputs

SENTENCE_MARKS = tuple("。！？；!?;")
MASK, GMASK = "[MASK]", "[gMASK]"


@dataclass
class GlmFamily(Family):
    """GLM-chinese. A dialogue is one prompt, a line a turn; text with mask tokens is filled, other text continued."""

    name = "glm"
    config_class = GlmConfig
    network_class = GlmModel
    tokenizer_class = GlmTokenizer
    original_format: ClassVar[Any] = original_format
    vocab_padded_to = 128
    packs = True
    published_conventions = TRANSFORMERS_4_31
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    blank = MASK
    objectives: ClassVar[dict[str, float]] = {"spans": 0.5, "sentences": 0.2, "document": 0.3}

    config: GlmConfig

    def __post_init__(self) -> None:
        # Command tokens follow the pieces, whose number varies.
        if self.tokenizer is not None:
            shared = self.config.mask_token_ids[2] == self.config.eop_token_id  # the 10B original's [gMASK]
            names = ("[MASK]", "[sMASK]", "<|endofpiece|>" if shared else GMASK)
            self.config.mask_token_ids = [self._id(name) for name in names]
            self.config.sop_token_id = self._id("<|startofpiece|>")
            self.config.eop_token_id = self._id("<|endofpiece|>")
            self.config.pad_token_id = self.config.eos_token_id = self._id("<|endoftext|>")

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        found = [(self.config.eop_token_id, f"{CONFIG}'s eop_token_id"), (self.config.eos_token_id, CONFIG)]
        return collect(found, self.config, self.tokenizer)

    @property
    def positions(self) -> int:
        return self.config.max_sequence_length

    def fitting(self, limit: int, reply: int) -> tuple[int, int]:
        """An answer has positions of its own."""
        return min(limit, self.positions), min(reply, self.positions)

    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        if isinstance(record, Dialogue) and len(record.turns) < 2:
            return []
        if isinstance(record, Text):
            answer = self.encode(record.text)
            source = self._source("", GMASK)
        else:
            pair = as_pair(record)
            answer = self.encode(pair.response)
            source = self._source(pair.prompt, pair.prefix + MASK)
        cut, whole = 0, len(answer)
        while len(source) - cut + len(answer) + 1 > limit and answer:
            if len(source) - cut > len(answer) + 1:
                cut += 1  # the oldest tokens after [CLS] go first
            else:
                answer.pop()
        source = [source[0], *source[1 + cut :]]
        if not answer or not self._masks(source):
            return []
        parts = [Part(tuple(source), False), Part(tuple(answer), True)]
        if isinstance(record, Text) and len(answer) < whole:
            parts.append(Part((), False))  # the text goes on: no stop token follows the visible part
        return [parts]

    def row(self, parts: Sequence[Part], stop: bool = True, feed_stop: bool = False) -> Row:
        """Unscored parts are the context; every scored part answers the next mask token of it."""
        context = [token for part in parts if not part.scored for token in part.ids]
        answers = [list(part.ids) for part in parts if part.scored]
        return self._filled(context, answers, None, stop and parts[-1].scored, feed_stop)

    def pretrain(self, parts: Sequence[Part], rng: Random, objectives: Mapping[str, float] | None = None) -> Row:
        """Blank filling on the scored ids: [MASK] hides spans, [sMASK] sentences, [gMASK] the rest of the document."""
        ids = [id_ for part in parts if part.scored for id_ in part.ids]
        drawn = draw_objective(objectives or self.objectives, rng)
        ends = self._sentence_ends(ids) if drawn == "sentences" else []
        if drawn == "document":
            spans, token = draw_document(len(ids), rng), 2
        elif len(ends) > 1:
            spans, token = draw_sentences(ends, rng), 1
        else:  # a piece of a single sentence is learned by spans
            spans, token = draw_spans(len(ids), rng), 0
        context, places, kept = [self._id("[CLS]")], [], 0
        for first, last in spans:
            context += ids[kept:first]
            places.append(len(context))
            context.append(self.config.mask_token_ids[token])
            kept = last
        context += [*ids[kept:], self._id("<|endoftext|>")]
        highest = self.config.max_sequence_length
        if max(len(context), *(last - first + 1 for first, last in spans)) > highest + 1:
            raise UnsupportedError(
                f"a piece of {len(ids)} tokens and its markers need more than the {highest} positions of this model; "
                f"cut documents shorter: limit={highest - 1}"
            )
        order = rng.sample(range(len(spans)), len(spans))
        answers = [ids[slice(*spans[number])] for number in order]
        return self._filled(context, answers, [places[number] for number in order])

    def pack(self, rows: Sequence[Row]) -> Row:
        """Concatenated rows with the positions they have alone; ``prefix`` (T,): the end of the context of each token."""
        packed = causal_pack(rows)
        ends, before = [], 0
        for row in rows:
            ends.append((before + row.inputs["prefix"]).expand(len(row.labels)))
            before += len(row.labels)
        positions_PT = torch.cat([row.inputs["position_ids"] for row in rows], dim=1)
        return replace(packed, inputs={**packed.inputs, "position_ids": positions_PT, "prefix": torch.cat(ends)})

    def _filled(
        self,
        context: list[int],
        answers: Sequence[list[int]],
        places: Sequence[int] | None,
        stop: bool = True,
        feed_stop: bool = False,
    ) -> Row:
        """A row of a context and the answers to its mask tokens at ``places``; None: to those without one, in order."""
        sop, eop = self.config.sop_token_id, self.config.eop_token_id
        ids, labels = list(context), [IGNORE] * len(context)
        outline = list(context)  # with -1 for the answers' ids, since a policy may generate <sop> inside an answer
        for number, answer in enumerate(answers, 1):
            last = number == len(answers)
            end = [eop] if feed_stop and last else []
            labels += [*answer, eop if stop or not last else IGNORE, *[IGNORE] * len(end)]
            ids += [sop, *answer, *end]
            outline += [sop, *[-1] * (len(answer) + len(end))]
        positions = self._positions(outline) if places is None else self._positions(outline, len(context), places)
        inputs = {**token_inputs(ids), "position_ids": positions, "prefix": torch.tensor(len(context))}
        return Row.of(inputs, labels)

    def _sentence_ends(self, ids: Sequence[int]) -> list[int]:
        """One past the last token of every sentence: a piece that ends with a mark of ``SENTENCE_MARKS``."""
        pieces = self.tokenizer.convert_ids_to_tokens(list(ids))
        ends = [place for place, piece in enumerate(pieces, 1) if piece.endswith(SENTENCE_MARKS)]
        return ends if ends and ends[-1] == len(ids) else [*ends, len(ids)]

    def prompt(self, context_ids: Sequence[int]) -> Prompt:
        """Earlier answers are in ``context_ids`` as ``<sop> answer``; the next mask token is answered now."""
        ids = [*context_ids, self.config.sop_token_id]
        positions_PT, step = self._positions(ids), torch.tensor([0, 1])
        prefix = torch.tensor(ids.index(self.config.sop_token_id))
        inputs = {**token_inputs(ids), "position_ids": positions_PT, "prefix": prefix}
        return Prompt(inputs, positions_PT[:, -1] + step, step, self.stop_ids)

    def context(self, record: Record, limit: int) -> Context:
        if isinstance(record, Text):
            masked = any(token in record.text for token in (MASK, GMASK, "[sMASK]"))
            source = self._source("", record.text if masked else record.text + GMASK)
        else:
            pair = as_pair(record, waiting=True)
            source = self._source(pair.prompt, pair.prefix + MASK)
        kept = [source[0], *source[1:][-(limit - 1) :]]
        if not self._masks(kept):
            raise UnsupportedError(f"{record.where or 'prompt'}: no mask token is left in the last {limit} tokens")
        return Context(tuple(kept), tuple(source))

    def cloze(self, before: str, options: Sequence[str], after: str = "") -> list[list[Part]]:
        context = Part(tuple(self._source("", before + MASK + after)), False)
        return [[context, Part(tuple(self.encode(option)), True)] for option in options]

    def next_blank(self, context_ids: Sequence[int], answer: Sequence[int]) -> tuple[int, ...] | None:
        sop = self.config.sop_token_id
        filled = (*context_ids, sop, *answer)
        return filled if filled.count(sop) < len(self._masks(filled[: filled.index(sop)])) else None

    def _positions(self, ids: Sequence[int], start: int | None = None, places: Sequence[int] | None = None) -> Tensor:
        """Positions (2, T): 0, 1, … in the context; in the k-th answer the place of its mask token and 1, 2, …

        Answers begin at ``start``, by default the first ``<sop>``. ``places``: of mask tokens, by default all of the context.
        """
        sop = self.config.sop_token_id
        if start is None:
            start = ids.index(sop) if sop in ids else len(ids)
        masks = self._masks(ids[:start]) if places is None else places
        first, second = list(range(start)), [0] * start
        answer = place = -1
        for token in ids[start:]:
            if token == sop:
                answer, place = answer + 1, 0
                if answer >= len(masks):
                    raise UnsupportedError(f"{answer + 1} answers but {len(masks)} mask tokens in the context")
            place += 1
            first.append(masks[answer])
            second.append(place)
        return torch.tensor([first, second])

    def _masks(self, ids: Sequence[int]) -> list[int]:
        return [place for place, token in enumerate(ids) if token in self.config.mask_token_ids]

    def _source(self, prompt: str, rest: str) -> list[int]:
        """``[CLS] prompt [SEP] rest <eos>``; without a prompt ``[CLS] rest <eos>``."""
        texts = (prompt, rest) if prompt else (rest,)
        ids = self.tokenizer.build_inputs_with_special_tokens(*map(self.encode, texts))
        gmask = self._id(GMASK)
        return [self.config.mask_token_ids[2] if token == gmask else token for token in ids]

    def _id(self, token: str) -> int:
        return int(str(self.tokenizer.convert_tokens_to_ids(token)))


FAMILY = GlmFamily
