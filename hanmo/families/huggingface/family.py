"""Turns text into rows of any transformers model, by its chat template, or as plain text without one."""

import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from random import Random
from typing import Any, ClassVar

import torch
from tokenizers.decoders import WordPiece
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig

from hanmo.errors import RecordError, UnsupportedError
from hanmo.families.base import Export, Family, as_pair
from hanmo.families.huggingface.arguments import argument_names, checked_arguments, described
from hanmo.families.huggingface.modeling import TransformersModel, positions_of
from hanmo.families.huggingface.templates import (
    TemplateForm,
    TemplateRefusalError,
    ToolForm,
    render_template,
    template_name,
)
from hanmo.families.huggingface.text import behind, end_of_text, end_of_turn, separator, spoken, without_blanks
from hanmo.families.stops import CONFIG, GENERATION, Stop, collect, config_value, has_row
from hanmo.records import Dialogue, Record, ScoredAnswers, Text
from hanmo.rows import IGNORE, Context, Part, Prompt, Row, split_at_difference, stack, token_inputs

THINKING = "enable_thinking"  # Qwen3's name, which most templates have taken over


class HuggingfaceFamily(Family):
    name = "huggingface"
    config_class = PretrainedConfig
    network_class = TransformersModel
    tokenizer_class: ClassVar[Any] = AutoTokenizer
    vocab_padded_to = 0
    lora_targets = ("all-linear",)
    #: prompts end behind the block of the reasoning: see ``answering_at_once``
    _at_once = False

    @property
    def packs(self) -> bool:  # type: ignore[override]
        """Decoders; the network probes itself at the first packed row."""
        return not self.config.is_encoder_decoder

    @property
    def objectives(self) -> dict[str, float]:  # type: ignore[override]
        """Encoder-decoders draw the place at which a text is split; decoders draw nothing."""
        return {"prefix": 1.0} if self.config.is_encoder_decoder else {}

    @property
    def positions(self) -> int | None:
        return positions_of(self.config)[1]

    def fitting(self, limit: int, reply: int) -> tuple[int, int]:
        """An encoder's positions are not those of the reply."""
        if not self.config.is_encoder_decoder:
            return super().fitting(limit, reply)
        encoder, decoder = positions_of(self.config)
        return min(limit, encoder or limit), min(reply, decoder or reply)

    def with_template(self, arguments: Mapping[str, Any]) -> Family:
        if not arguments or not self.tokenizer.chat_template:
            return super().with_template(arguments)
        changed = copy(self)
        changed.template_arguments = {**self.template_arguments, **checked_arguments(self.tokenizer, arguments)}
        for found in ("stops", "_template_form", "_tool_form"):  # by rendering with the other arguments
            vars(changed).pop(found, None)
        return changed

    @property
    def template_mode(self) -> str:
        if not self.tokenizer.chat_template:
            return ""
        template = sha256(str(self.tokenizer.get_chat_template()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        closed = "think block closed" if self._at_once and self._template_form.thought else ""
        return ", ".join(filter(None, (template, described(self.template_arguments), closed)))

    def answering_at_once(self) -> Family:
        """By the template's own ``enable_thinking=false``, or by the closed block that it writes before a reply."""
        if not self.tokenizer.chat_template:
            return self
        off = {THINKING: False} if THINKING in argument_names(self.tokenizer) else {}
        changed = copy(self.with_template(off | self.template_arguments))
        assert isinstance(changed, HuggingfaceFamily)
        changed._at_once = True
        return changed

    def conversation(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Context:
        if not self.tokenizer.chat_template:
            return super().conversation(messages, tools)
        form, turns = self._tool_form, [dict(message) for message in messages]
        called = any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns)
        if (tools and not form.described) or (called and not form.called):
            lacks = "calls of tools and their results" if called and not form.called else "tools"
            raise UnsupportedError(f"{template_name(self.tokenizer)} writes nothing of {lacks}; leave them out")
        system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
        given = self._render_tools(self._template_form.messages(system, turns), list(tools))
        ids = tuple(self.encode(given + (self._template_form.thought if self._at_once else "")))
        return Context(ids, ids)

    @cached_property
    def _tool_form(self) -> ToolForm:
        return ToolForm.of(self._render_tools)

    def _render_tools(self, messages: Sequence[dict[str, Any]], tools: list[Any]) -> str:
        arguments = {**self.template_arguments, "tools": tools} if tools else self.template_arguments
        return render_template(self.tokenizer, messages, True, arguments)

    def _render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False) -> str:
        return render_template(self.tokenizer, messages, add_generation_prompt, self.template_arguments)

    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        if isinstance(record, Text):
            head, tail = self._around
            given = (*head, *tail) or (self.stop_id,) if self.config.is_encoder_decoder else head
            room = limit if self.config.is_encoder_decoder else limit - len(head)
            return _fitting(given, self.encode(record.text), room)
        prefix, answer = self._prompt_and_answer(record, limit)
        if not prefix:
            return []
        room = (response_limit or limit) - 1 if self.config.is_encoder_decoder else limit - len(prefix) - 1
        return _fitting(prefix, answer, room)

    def row(self, parts: Sequence[Part], stop: bool = True, feed_stop: bool = False) -> Row:
        if not self.config.is_encoder_decoder:
            return super().row(parts, stop, feed_stop)
        context = [token for part in parts if not part.scored for token in part.ids]
        answer = [token for part in parts if part.scored for token in part.ids]
        end = [self.stop_id] if feed_stop else []
        labels = [*answer, self.stop_id if stop and parts[-1].scored else IGNORE, *[IGNORE] * len(end)]
        decoder = [self._decoder_start, *answer, *end]
        return Row.of(token_inputs(context) | token_inputs(decoder, "decoder_"), labels)

    def pretrain(self, parts: Sequence[Part], rng: Random, objectives: Mapping[str, float] | None = None) -> Row:
        """For encoder-decoders prefix language modeling (Raffel et al. 2020)."""
        if not self.config.is_encoder_decoder:
            return self.row(parts)
        ids = [token for part in parts for token in part.ids]
        place = rng.randrange(1, len(ids)) if len(ids) > 1 else 0
        head, tail = self._around
        given = Part((*head, *ids[:place], *tail) or (self.stop_id,), False)
        return self.row([given, Part(tuple(ids[place:]), True)], stop=parts[-1].scored)

    def prompt(self, context_ids: Sequence[int]) -> Prompt:
        prompt = super().prompt(context_ids)
        if not self.config.is_encoder_decoder:
            return prompt
        inputs = {name: value for name, value in prompt.inputs.items() if name != "position_ids"}
        inputs["decoder_input_ids"] = torch.tensor([self._decoder_start])
        return Prompt(inputs, torch.tensor([1]), torch.tensor([1]), self.stop_ids)

    def stack_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """An encoder's input is padded on the right, because encoders count positions from the first column."""
        if not self.config.is_encoder_decoder:
            return super().stack_prompts(prompts)
        return stack([prompt.inputs for prompt in prompts], self.padding)

    def context(self, record: Record, limit: int) -> Context:
        if isinstance(record, Text):
            ids = self._opened(record.text)
            return Context(tuple(ids[-limit:]), tuple(ids))
        if isinstance(record, Dialogue):
            drawn = (*record.ids, None) if record.ids else ()
            record = replace(record, turns=(*record.turns, ""), ids=drawn)  # the response is still to come
        ids, _ = self._prompt_and_answer(record, limit)
        full_ids, _ = self._prompt_and_answer(record, None)
        if full_ids and not ids:
            raise UnsupportedError(
                f"{record.where or 'the prompt'}: its last turn alone is more than the {limit} tokens that the model is "
                "shown; give a larger limit"
            )
        return Context(tuple(ids), tuple(full_ids))

    def as_transformers(self) -> Export:
        raise UnsupportedError("a model of transformers is what plain transformers loads: convert it without --to hf")

    def cloze(self, before: str, options: Sequence[str], after: str = "") -> list[list[Part]]:
        """Plain text, without the chat template; the context of encoder-decoders is the text before the gap."""
        if self.config.is_encoder_decoder:
            context = Part(self.context(Text(before), sys.maxsize).ids, False)
            return [[context, Part(tuple(self.encode(option + after)), True)] for option in options]
        texts = [self.context(Text(before + option + after), sys.maxsize).ids for option in options]
        return split_at_difference(texts)

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        """The first one, which rows predict, ends an assistant's turn if the template has such a token."""
        found = (
            (end_of_turn(self.tokenizer, self._render), "chat template"),
            (self.tokenizer.eos_token_id, "tokenizer's eos_token"),
            (end_of_text(self.tokenizer), "tokenizer's sep_token"),
            (config_value(self.config, "eos_token_id"), CONFIG),
            (self.generation.get("eos_token_id"), GENERATION),
        )
        return collect(found, self.config, self.tokenizer)

    @cached_property
    def _decoder_start(self) -> int:
        """The first input of an encoder-decoder's decoder."""
        key = "decoder_start_token_id"
        # T5's configuration class has no bos_token_id at all
        named = config_value(self.config, key), self.generation.get(key), config_value(self.config, "bos_token_id")
        known: list[Any] = [id_ for id_ in named if has_row(id_, self.config)]
        if not known:
            raise UnsupportedError(
                "no token starts a reply: decoder_start_token_id in config.json must have a row of the embedding"
            )
        return int(known[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, without the spaces that word-piece tokenizers (BERT's) put between Chinese words."""
        text = super().decode(ids)
        inner = getattr(self.tokenizer, "backend_tokenizer", None)
        return without_blanks(text) if inner is not None and isinstance(inner.decoder, WordPiece) else text

    def _prompt_and_answer(self, record: Record, limit: int | None) -> tuple[list[int], list[int]]:
        """The ids before the response, without the oldest turns if ``limit`` is short, and those of the response.

        The former are empty if there is no prompt or the last one does not fit. RecordError if the template refuses.
        """
        if not self.tokenizer.chat_template:
            return self._plain_pair(record, limit)
        try:
            return self._template_pair(record, limit)
        except TemplateRefusalError as error:
            if not record.where:
                raise
            raise RecordError.at(record.where, str(error)) from None

    def _template_pair(self, record: Record, limit: int | None) -> tuple[list[int], list[int]]:
        assert not isinstance(record, Text), "running text has no turns"
        if isinstance(record, ScoredAnswers):
            record = record.ending(record.best().response)
        turns = spoken(self, record) if isinstance(record, Dialogue) else (record.prompt, record.response)
        first = (len(turns) - 1) % 2 == 0  # the first speaker, so that the response is the assistant's
        roles = ("assistant", "user") if first else ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        if messages[0]["role"] == "assistant":
            messages = messages[1:]  # templates want the user to begin
        if not messages:
            return [], []
        prefix = "" if isinstance(record, Dialogue) else record.prefix
        form = self._template_form
        while True:
            opened = self._render(form.messages(record.system, messages[:-1]), True)
            opened += form.thought if self._at_once else ""
            given, answer = form.reply(opened, prefix, messages[-1]["content"])
            prompt = self.encode(given)
            if limit is None or len(prompt) <= limit or len(messages) <= 2:
                break
            messages = messages[2:]
        return (prompt if limit is None or len(prompt) <= limit else []), self._answer(given, answer)

    def _plain_pair(self, record: Record, limit: int | None) -> tuple[list[int], list[int]]:
        mark, pair = self._separator, as_pair(record, separator=self._separator)
        if isinstance(record, Dialogue) and len(record.turns) < 2:
            return [], []
        ends = self.config.is_encoder_decoder and mark != "\n" and not pair.prefix  # with the end of every text
        given = pair.prompt + ("" if ends else mark) + pair.prefix
        ids = self._opened(given)
        return ids[-limit:] if limit else ids, self._answer(given, pair.response)

    def _answer(self, given: str, answer: str) -> list[int]:
        """A decoder continues the given text; the answer of an encoder-decoder is a separate text."""
        return self.encode(answer) if self.config.is_encoder_decoder else behind(self.encode, given, answer)

    def _opened(self, text: str) -> list[int]:
        """A text with the tokenizer's special tokens; a decoder, which could not continue, gets none at the end."""
        head, tail = self._around
        return [*head, *self.encode(text), *(tail if self.config.is_encoder_decoder else ())]

    @cached_property
    def _separator(self) -> str:
        return separator(self.encode, self.tokenizer)

    @cached_property
    def _template_form(self) -> TemplateForm:
        return TemplateForm.of(self._render)

    @property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens that the tokenizer puts before and after a text."""
        whole, plain = self.tokenizer.encode("一"), self.encode("一")
        start = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
        return tuple(whole[:start]), tuple(whole[start + len(plain) :])


def _fitting(given: Sequence[int], ids: list[int], room: int) -> list[list[Part]]:
    """The given ids and as many of the others as fit; if any do not, also an empty part, so that no stop is learned."""
    kept = ids[: max(room, 0)]
    parts = [Part(tuple(given), False), Part(tuple(kept), True)]
    return [parts if kept == ids else [*parts, Part((), False)]] if kept else []


FAMILY = HuggingfaceFamily
