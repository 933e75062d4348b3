"""Turns text into rows of PanGu-α: ``<s> prompt <sep> prefix response <eot>``."""

from functools import cached_property
from typing import Any, ClassVar

from hanmo.families.base import Family, as_pair
from hanmo.families.decoding import TRANSFORMERS_4_31
from hanmo.families.pangu import original_format
from hanmo.families.pangu.modeling import PanguConfig, PanguModel
from hanmo.families.pangu.tokenization import PanguTokenizer
from hanmo.families.stops import CONFIG, Stop, collect
from hanmo.records import Dialogue, Record, Text
from hanmo.rows import UNSEEN, Context, Part


class PanguFamily(Family):
    name = "pangu"
    config_class = PanguConfig
    network_class = PanguModel
    tokenizer_class = PanguTokenizer
    original_format: ClassVar[Any] = original_format
    packs = True
    padding: ClassVar[dict[str, int]] = {UNSEEN: 1}
    vocab_padded_to = 128
    published_conventions = TRANSFORMERS_4_31
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")

    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        bos, sep = self.tokenizer.bos_token_id, self.tokenizer.sep_token_id
        if isinstance(record, Text):
            ids = self.encode(record.text)
            seen = [Part((bos,), False), Part(tuple(ids[: limit - 1]), True)]
            if len(ids) >= limit:
                seen.append(Part((), False))  # the text goes on: no stop token follows the visible part
            return [seen] if seen[1].ids else []
        if isinstance(record, Dialogue) and len(record.turns) < 2:
            return []
        prompt, answer, common = self.prompt_and_answer(record)
        kept, answered = len(prompt), len(answer)
        while kept + answered + 3 > limit and (kept or answered):
            if kept > answered:
                kept -= 1
            else:
                answered -= 1
        prompt, answer = _shown(record, prompt, kept), answer[:answered]
        if len(answer) <= common:
            return []
        return [[Part((bos, *prompt, sep, *answer[:common]), False), Part(tuple(answer[common:]), True)]]

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        return collect([(self.config.eos_token_id, CONFIG)], self.config, self.tokenizer)

    def context(self, record: Record, limit: int) -> Context:
        """Text is continued unchanged; a prompt has the form of fine-tuning, and only the prompt is truncated."""
        if isinstance(record, Text):
            ids = self.encode(record.text)
            return Context(tuple(ids[-limit:]), tuple(ids))
        pair = as_pair(record, waiting=True)
        bos, sep = self.tokenizer.bos_token_id, self.tokenizer.sep_token_id
        prompt, prefix = self.encode(pair.prompt), self.encode(pair.prefix)
        room = max(limit - len(prefix) - 2, 0)
        return Context((bos, *_shown(record, prompt, room), sep, *prefix), (bos, *prompt, sep, *prefix))

    def published_length(self, text: str) -> int:
        """Words, as the original's ``tokenize`` counts them."""
        return len(self.tokenizer.segments(text))


def _shown(record: Record, prompt: list[int], count: int) -> list[int]:
    """``count`` tokens of a prompt: the last ones of a dialogue, else the first, as published."""
    return prompt[max(len(prompt) - count, 0) :] if isinstance(record, Dialogue) else prompt[:count]


FAMILY = PanguFamily
