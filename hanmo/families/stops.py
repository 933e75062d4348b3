"""Stop tokens, and the check of a model's special ids against its vocabulary."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

#: keys of config.json and generation_config.json for special tokens; the first is the one that ends texts
ID_KEYS = (
    *("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)
CONFIG, GENERATION = "config.json", "generation_config.json"


@dataclass(frozen=True)
class Stop:
    """A token that ends a reply, and the files that name it."""

    id: int
    sources: tuple[str, ...]


def collect(found: Iterable[tuple[Any, str]], config: PretrainedConfig, tokenizer: Any) -> tuple[Stop, ...]:
    """(ids, source) pairs as stops: each id once, in order; ids outside the vocabulary are left out."""
    sources: dict[int, list[str]] = {}
    for ids, source in found:
        for id_ in listed(ids):
            if is_token(id_, config, tokenizer) and source not in sources.setdefault(id_, []):
                sources[id_].append(source)
    return tuple(Stop(id_, tuple(places)) for id_, places in sources.items())


def listed(value: Any) -> list[Any]:
    """The ids under a key of a file, as a list: one, several or none."""
    return [id_ for id_ in (value if isinstance(value, list | tuple) else [value]) if id_ is not None]


def is_token(id_: Any, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an id has a row of the embedding and a token of the tokenizer."""
    return has_row(id_, config) and (id_ < len(tokenizer) or id_ in tokenizer.get_vocab().values())


def has_row(id_: Any, config: PretrainedConfig) -> bool:
    return isinstance(id_, int) and not isinstance(id_, bool) and 0 <= id_ < config.get_text_config().vocab_size


def config_value(config: PretrainedConfig, key: str) -> Any:
    """A configuration's value for a key, or that of its text part; None if neither has one."""
    values = (getattr(one, key, None) for one in (config, config.get_text_config()))
    return next((value for value in values if value is not None), None)


def ids_outside_vocabulary(
    config: PretrainedConfig, generation: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """One remark for each id in the files that is not in the vocabulary; such ids are ignored."""
    rows = config.get_text_config().vocab_size
    for key in ID_KEYS:
        for place, value in ((CONFIG, config_value(config, key)), (GENERATION, generation.get(key))):
            for id_ in listed(value):
                if not is_token(id_, config, tokenizer):
                    yield f"{place}: {key}={id_!r} is none of the {min(len(tokenizer), rows):,} tokens: ignored"


def stated(
    generation: Mapping[str, Any], stops: Iterable[Stop], config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """The content of generation_config.json: ``generation`` with these stops and without ids outside the vocabulary."""

    def known(ids: Any) -> Any:
        kept = [id_ for id_ in listed(ids) if is_token(id_, config, tokenizer)]
        return kept if isinstance(ids, list | tuple) else next(iter(kept), None)

    result = {key: known(value) if key in ID_KEYS else value for key, value in generation.items()}
    for key in ID_KEYS:
        if result.get(key) is None:
            result[key] = known(config_value(config, key))
    if result["pad_token_id"] is None:
        result["pad_token_id"] = known(tokenizer.pad_token_id)
    ids = [stop.id for stop in stops]
    result["eos_token_id"] = ids if len(ids) > 1 else (ids[0] if ids else None)
    return {key: value for key, value in result.items() if value is not None and not key.startswith("_")}
