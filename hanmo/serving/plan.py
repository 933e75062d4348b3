"""The fields that chat completions and completions share, as settings of the decoder and options of the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hanmo.errors import ConfigError
from hanmo.generation.settings import MOST_BEAMS, Settings
from hanmo.serving.errors import ApiError
from hanmo.serving.fields import Fields
from hanmo.serving.served import Served

MOST_CHOICES = 128  # replies to one request
MOST_STOPS, LONGEST_STOP = 16, 256  # strings, and characters of one
MOST_BIASES = 1024
MOST_TOKENS = 2**31 - 1
MOST_ALTERNATIVES = 20  # of a token, with their log-probabilities
BEAMS = 4  # of a beam search without ``num_beams``
GREEDY = 1e-5  # temperatures below it would divide by next to nothing

# Accepted and without effect: they are about the account, the cache or the style of OpenAI's own service.
IGNORED = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "reasoning_effort", "verbosity"),
        *("prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    )
)
# Fields that would change the meaning of a reply and that no model here follows: the value that asks for nothing.
_NOTHING: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("functions", "chat_template", "bad_words", "modalities", "documents"),
        lambda value: not value or value == ["text"],
    ),
    **dict.fromkeys(("tool_choice", "function_call"), lambda value: value in ("none", "auto")),
    **dict.fromkeys(
        (
            *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar"),
            *("json_schema", "allowed_token_ids", "audio", "prediction", "web_search_options", "prompt_logprobs"),
            *("logits_processors", "mm_processor_kwargs", "typical_p", "mirostat"),
        ),
        lambda value: False,
    ),
    "response_format": lambda value: isinstance(value, dict) and value.get("type") == "text",
    **dict.fromkeys(("skip_special_tokens", "add_generation_prompt"), lambda value: value is True),
    "continue_final_message": lambda value: value is False,
}


@dataclass(frozen=True)
class Options:
    """What the answer holds beside the reply, and how it arrives.

    Attributes:
        alternatives: most likely tokens to show at each step; None: no log-probabilities at all.
        kept_stop: the stop string is part of the text.
        continuous_usage: chunks of a stream hold the usage so far.
    """

    choices: int
    stops: tuple[str, ...]
    kept_stop: bool
    stop_ids: frozenset[int]
    min_tokens: int
    alternatives: int | None
    stream: bool
    usage: bool
    continuous_usage: bool
    ids: bool  # token ids beside the text
    tokens_as_ids: bool  # "token_id:5" in place of a token's text


def refuse_unsupported(fields: Fields) -> None:
    """ApiError for a field that would change the meaning of the reply if it were followed."""
    for name, asks_nothing in _NOTHING.items():
        value = fields.value(name)
        if value is not None and not asks_nothing(value):
            raise ApiError(f"{name} is not supported by this server, except to ask for nothing", name)


def read_options(fields: Fields, alternatives: int | None, vocabulary: int) -> Options:
    stream = fields.flag("stream")
    streaming = fields.inner("stream_options")
    if fields.given("stream_options") and not stream:
        raise ApiError("stream_options is only for stream=true", "stream_options")
    choices = fields.whole("n", 1, MOST_CHOICES, 1)
    if fields.whole("best_of", 1, MOST_CHOICES, choices) != choices:
        raise ApiError("best_of must be equal to n: the server keeps every reply that it draws", "best_of")
    return Options(
        choices=choices,
        stops=tuple(fields.texts("stop", MOST_STOPS, LONGEST_STOP) or ()),
        kept_stop=fields.flag("include_stop_str_in_output"),
        stop_ids=frozenset(fields.ids("stop_token_ids", vocabulary) or ()),
        min_tokens=fields.whole("min_tokens", 0, MOST_TOKENS, 0),
        alternatives=alternatives,
        stream=stream,
        usage=streaming.flag("include_usage"),
        continuous_usage=streaming.flag("continuous_usage_stats"),
        ids=fields.flag("return_token_ids"),
        tokens_as_ids=fields.flag("return_tokens_as_token_ids"),
    )


def read_settings(fields: Fields, served: Served, options: Options) -> Settings:
    """The model's settings with what the request changes; the length of the reply is set when its room is known."""
    changes: dict[str, Any] = {
        "top_k": fields.whole("top_k", -1, MOST_TOKENS),
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0, 100),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "length_penalty": fields.number("length_penalty", -50, 50),
        "no_repeat_ngram_size": fields.whole("no_repeat_ngram_size", 0, MOST_TOKENS),
        "seed": fields.whole("seed", -(2**63), 2**63 - 1),
        "min_new_tokens": options.min_tokens or None,
        "logit_bias": _biases(fields, served.vocabulary),
        **_sampling(fields),
    }
    if changes["top_k"] == -1:
        changes["top_k"] = 0
    if fields.flag("use_beam_search"):
        changes |= {"num_beams": fields.whole("num_beams", 2, MOST_BEAMS, BEAMS), "do_sample": False}
    settings = _changed(served.settings, changes)
    if settings.num_beams > 1:
        if options.choices > 1:
            raise ApiError("a beam search has one reply: n must be 1", "n")
        if options.alternatives is not None:
            raise ApiError("a beam search has no log-probabilities of single tokens", "logprobs")
    return settings


def with_length(settings: Settings, fields: Fields, room: int) -> Settings:
    """The settings of a reply of at most ``room`` tokens."""
    longest = {"max_new_tokens": room, "min_new_tokens": room if fields.flag("ignore_eos") else None}
    return _changed(settings, longest)


def _sampling(fields: Fields) -> dict[str, Any]:
    """A temperature or a top_p of 0 asks for the most likely token."""
    temperature, top_p = fields.number("temperature", 0, 100), fields.number("top_p", 0, 1)
    if (temperature is not None and temperature < GREEDY) or top_p == 0:
        return {"do_sample": False}
    return {"temperature": temperature, "top_p": top_p, "do_sample": None if temperature is None else True}


def _biases(fields: Fields, vocabulary: int) -> tuple[tuple[int, float], ...] | None:
    found = fields.value("logit_bias")
    if not found:
        return None
    expected = f"an object of at most {MOST_BIASES} token ids, each with a number between -100 and 100"
    if not isinstance(found, dict) or len(found) > MOST_BIASES:
        fields.wrong("logit_bias", expected)
    pairs = []
    for key, bias in found.items():
        known = key.isdecimal() and len(key) < 12 and int(key) < vocabulary
        number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not known or not number or not -100 <= bias <= 100:
            fields.wrong("logit_bias", f"{expected}; {key[:20]!r} is no such pair")
        pairs.append((int(key), float(bias)))
    return tuple(sorted(pairs))


def _changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    try:
        return settings.change(**{name: value for name, value in changes.items() if value is not None})
    except ConfigError as error:
        raise ApiError(str(error), str(error).partition("=")[0]) from None
