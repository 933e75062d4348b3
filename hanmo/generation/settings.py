"""Decoding settings: one set of names for the command line, the presets, the code and the docs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from hanmo.errors import ConfigError

MOST_BEAMS = 1000  # each takes the memory of a reply
STEEPEST = 50  # exponent up to which a power of any length is a number


@dataclass(frozen=True)
class Settings:
    """Decoding settings. The defaults are plain sampling; families bring presets of their own.

    Attributes:
        max_new_tokens: the longest reply. [tokens]
        min_new_tokens: the shortest reply: before it, the stop token is suppressed. [tokens]
        do_sample: draw tokens; otherwise take the best (greedy, or beam search if num_beams > 1).
        temperature: logits are divided by it; above 0. [T]
        top_k: draw from the k best tokens; 0 is off. [k, tokens]
        top_p: draw from the smallest set of tokens with this probability; 0 and 1 are off. [p, probability]
        min_p: draw from the tokens with at least this share of the best one's probability; 0 is off. [1]
        num_beams: replies that a beam search follows at a time; 1 is no beam search. [beams]
        length_penalty: exponent of the length in a finished beam's score, sum(log p) / length ** length_penalty. [α]
        early_stopping: a beam search ends as soon as num_beams replies are finished.
        repetition_penalty: above 1 makes tokens that occurred less likely; 1 is off. [θ]
        no_repeat_ngram_size: no n-gram of this length occurs twice; 0 is off. [tokens]
        presence_penalty: taken off the logit of every token that the reply has; 0 is off. [logits]
        frequency_penalty: taken off a token's logit as often as the reply has it; 0 is off. [logits]
        logit_bias: added to the logits of tokens, as pairs of id and bias. [logits]
        suppressed_ids: ids that are never sampled, beside those of the family. [token ids]
        rule_files: follow the rule files (antonyms) that came with the model, if there are any.
        seed: seed of the random draws; null draws one.
        published: reproduce the original's published decoding, flaws included.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    suppressed_ids: tuple[int, ...] = ()
    rule_files: bool = True
    seed: int | None = None
    published: bool = False

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", self.min_new_tokens >= 0, "0 or more"),
            ("suppressed_ids", all(id_ >= 0 for id_ in self.suppressed_ids), "ids of tokens, 0 or more"),
            ("temperature", 0 < self.temperature < math.inf, "above 0; for greedy decoding set do_sample=false"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 <= self.top_p <= 1, "between 0 and 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number"),
            (
                "logit_bias",
                all(id_ >= 0 and math.isfinite(bias) for id_, bias in self.logit_bias),
                "ids and finite biases",
            ),
            ("num_beams", 1 <= self.num_beams <= MOST_BEAMS, f"between 1 and {MOST_BEAMS:,}"),
            ("length_penalty", abs(self.length_penalty) <= STEEPEST, f"between -{STEEPEST} and {STEEPEST}"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 (off) or more"),
        ):
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {expected}")

    def change(self, **changes: Any) -> Settings:
        return replace(self, **changes)
