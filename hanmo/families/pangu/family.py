"""How text becomes rows of PanGu-α: ``<s> prompt <sep> prefix response <eot>``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import ClassVar

from hanmo.families.base import TRANSFORMERS_4_31, Family, as_pair
from hanmo.families.pangu import original_format
from hanmo.families.pangu.modeling import PanguConfig, PanguModel
from hanmo.families.pangu.tokenization import PanguTokenizer
from hanmo.families.stops import CONFIG, Stop, collect
from hanmo.nn.causal import causal_pack, causal_prompt, causal_row
from hanmo.records import Dialogue, Record, Text
from hanmo.rows import Context, Part, Prompt, Row


class PanguFamily(Family):
    name = "pangu"
    config_class = PanguConfig
    network_class = PanguModel
    tokenizer_class = PanguTokenizer
    original_format: ClassVar[ModuleType] = original_format
    packs = True
    vocab_padded_to = 128
    published_decoding = TRANSFORMERS_4_31
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")

    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        bos, sep = self.tokenizer.bos_token_id, self.tokenizer.sep_token_id
        if isinstance(record, Text):
            ids = self._ids(record.text)
            seen = [Part((bos,), False), Part(tuple(ids[: limit - 1]), True)]
            if len(ids) >= limit:
                seen.append(Part((), False))  # the text goes on: no stop token follows what is seen of it
            return [seen] if seen[1].ids else []
        if isinstance(record, Dialogue) and len(record.turns) < 2:
            return []
        pair = as_pair(record)
        prompt, given = self._ids(pair.prompt), self._ids(pair.prefix) if pair.prefix else []
        answer = self._ids(pair.prefix + pair.response)
        # The prefix is given: the ids that it and prefix + response have in common are not scored.
        common = next((i for i, (a, b) in enumerate(zip(given, answer)) if a != b), min(len(given), len(answer)))  # noqa: B905
        asked, said = len(prompt), len(answer)
        while asked + said + 3 > limit and (asked or said):
            if asked > said:
                asked -= 1
            else:
                said -= 1
        prompt, answer = _shown(record, prompt, asked), answer[:said]
        if len(answer) <= common:
            return []
        return [[Part((bos, *prompt, sep, *answer[:common]), False), Part(tuple(answer[common:]), True)]]

    @cached_property
    def stops(self) -> tuple[Stop, ...]:
        return collect([(self.config.eos_token_id, CONFIG)], self.config, self.tokenizer)

    def row(self, parts: Sequence[Part], stop: bool = True, closed: bool = False) -> Row:
        return causal_row(parts, self.config.eos_token_id, stop, closed)

    def pack(self, rows: Sequence[Row]) -> Row:
        return causal_pack(rows)

    def prompt(self, context_ids: Sequence[int]) -> Prompt:
        return causal_prompt(context_ids, self.stop_ids)

    def context(self, record: Record, limit: int) -> Context:
        """Text is continued as it is; a prompt is put as in fine-tuning, and only the prompt is cut: see ``_shown``."""
        if isinstance(record, Text):
            ids = self._ids(record.text)
            return Context(tuple(ids[-limit:]), tuple(ids))
        pair = as_pair(record, waiting=True)
        bos, sep = self.tokenizer.bos_token_id, self.tokenizer.sep_token_id
        prompt, prefix = self._ids(pair.prompt), self._ids(pair.prefix) if pair.prefix else []
        room = max(limit - len(prefix) - 2, 0)
        return Context((bos, *_shown(record, prompt, room), sep, *prefix), (bos, *prompt, sep, *prefix))

    def published_length(self, text: str) -> int:
        """Words, as the original's ``tokenize`` counted."""
        return len(self.tokenizer.segments(text))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def _shown(record: Record, prompt: list[int], count: int) -> list[int]:
    """What is seen of a prompt that is too long: its beginning, as published; of a dialogue what was said last."""
    return prompt[max(len(prompt) - count, 0) :] if isinstance(record, Dialogue) else prompt[:count]


FAMILY = PanguFamily
