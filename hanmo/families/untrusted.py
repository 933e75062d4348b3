"""Bounds what an untrusted tokenizer or configuration can cost.

Forty rewriting rules can double a text forty times; a configuration may claim a billion layers or labels. Counts are
compared with the tensors in the files. A tokenizer that may be harmful first runs in a child process with limits.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hanmo.errors import CheckpointError
from hanmo.files import read_json
from hanmo.limits import run_within_limits

_TEXT = "你好,今天天气很好。 Hello,  wörld! 123\n我们一起去公园吧!"
_FILES = ("special_tokens_map.json", "added_tokens.json")
_KNOWN = {
    *("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "BertNormalizer", "Nmt"),
    *("ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Digits", "Punctuation"),
    *("CharDelimiterSplit", "UnicodeScripts", "TemplateProcessing", "RobertaProcessing", "BertProcessing"),
    *("WordPiece", "BPEDecoder", "ByteFallback", "Fuse", "CTC"),
}
_GROWS = 8  # rules may lengthen a text by this factor without a trial run
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_LARGE = 100_000  # a larger number in a tokenizer's settings needs a trial run, unless its files have as many bytes
_SMALL = 256  # layers that a configuration may name, however few tensors there are
_COUNTED = re.compile(r"(^|_)(num|n|depth|layers?|blocks?|labels|stages?)(_|$)")
_LAYERS = re.compile(r"(^|_)(layers?|blocks?)$")
_MEASURED = re.compile(r"vocab|token|position|ctx|embd|embed|size|dim|width|inner|length|param|step|seed|id$|ids$")
_MOST = 1_000_000  # labels, experts, heads and the like


def check_tokenizer(folder: Path, settings: dict[str, Any], opened: Callable[[], Any]) -> None:
    """Raise CheckpointError unless a folder's tokenizer, which ``opened`` opens, encodes a text within limits."""
    patterns: list[str] = []
    all_settings = [settings, *(read_json(folder / name) for name in _FILES if (folder / name).is_file())]
    size = sum(
        file.stat().st_size for file in folder.iterdir() if file.name in _VOCABULARIES or file.suffix == ".model"
    )
    odd = any(_has_large(one, max(_LARGE, size)) for one in all_settings)
    try:
        if (rules := folder / "tokenizer.json").is_file():
            steps = read_json(rules)
            # The replaced strings, which the text of a trial run must contain.
            parts = (steps.get(part) for part in ("normalizer", "pre_tokenizer", "decoder"))
            patterns = [step.get("pattern", {}).get("String", "") for part in parts for step in _steps(part)]
            odd = odd or not _is_ordinary(steps, rules)
        else:
            for file in sorted(folder.glob("*.model")):
                check_pieces(file)
    except (TypeError, AttributeError, LookupError):
        odd = True

    def attempt() -> None:
        tokenizer = opened()
        tokenizer.decode(tokenizer.encode(_TEXT + "".join(patterns)))

    if odd:
        run_within_limits(attempt, f"{folder}: its tokenizer", size)


def check_pieces(path: Path) -> None:
    """Raise CheckpointError unless a sentencepiece model, which may hold rewriting rules, encodes a text within limits."""
    from sentencepiece import SentencePieceProcessor

    run_within_limits(
        lambda: SentencePieceProcessor(model_file=str(path)).encode(_TEXT), str(path), path.stat().st_size
    )


def _has_large(settings: Any, most: int) -> bool:
    """Whether a setting is above ``most``. Lengths do not count: a tokenizer only compares with them."""
    if isinstance(settings, dict):
        counted = (value for key, value in settings.items() if not re.search(r"max_len|length|id$", key))
        return any(_has_large(value, most) for value in counted)
    if isinstance(settings, list):
        return any(_has_large(value, most) for value in settings)
    return isinstance(settings, int | float) and abs(settings) > most


def _is_ordinary(settings: dict[str, Any], path: Path) -> bool:
    """Whether a tokenizer.json lengthens texts little, in linear time; CheckpointError if absurdly much."""
    padding = settings.get("padding") or {}
    fixed = padding["strategy"].get("Fixed", 0) if isinstance(padding.get("strategy"), dict) else 0
    if max(fixed, padding.get("pad_to_multiple_of") or 0) > _LARGE:
        most = fixed or padding["pad_to_multiple_of"]
        raise CheckpointError(f"{path}: fills every text up to {most:,} tokens; refused")
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        grows = 1.0
        for step in _steps(settings.get(part)):
            if step["type"] in ("Replace", "Split"):
                if not _is_simple(step["pattern"]):
                    return False
                grows *= _growth(step) if step["type"] == "Replace" else 1
            elif step["type"] == "Prepend":
                grows *= 1 + len(step["prepend"]) / len(_TEXT)
            elif step["type"] not in _KNOWN or len(json.dumps(step)) > 1 << 16:
                return False
        if grows > _LARGE:
            raise CheckpointError(f"{path}: its {part} can make a text {grows:.1e} times as long; refused")
        if grows > _GROWS:
            return False
    return True


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    if part is None:
        return
    inner = [part[key] for key in ("normalizers", "pretokenizers", "processors", "decoders") if key in part]
    if part["type"] != "Sequence" or len(inner) != 1:
        yield part
        return
    for one in inner[0]:
        yield from _steps(one)


def _is_simple(pattern: dict[str, str]) -> bool:
    """A plain text, or a regular expression that repeats no group and few things one after the other."""
    if "String" in pattern:
        return bool(pattern["String"])
    bare = re.sub(r"\\.|\[(\\.|[^\]])*\]", "x", pattern["Regex"])  # neither escapes nor sets of characters
    return not re.search(r"\)[*+{]", bare) and all(len(re.findall(r"[*+{]", one)) <= 3 for one in bare.split("|"))


def _growth(step: dict[str, Any]) -> float:
    """The largest factor by which a replacement lengthens a text; an empty match inserts the whole content."""
    plain, size = step["pattern"].get("String"), len(step["content"].encode())
    return max(1.0, size / len(plain.encode())) if plain else 1.0 + size


def check_counts(config: dict[str, Any], tensors: int, where: object) -> None:
    """Raise CheckpointError if a configuration claims more layers than there are tensors, or millions of other things.

    Building a network takes time and memory for each of them, even without weights.
    """
    for key, value in _numbers(config):
        if not isinstance(value, int | float) or not _COUNTED.search(key) or _MEASURED.search(key):
            continue
        most = max(tensors, _SMALL) if _LAYERS.search(key) else max(tensors, _MOST)
        if value > most:
            raise CheckpointError(f"{where}: {key} is {value:,}, but the files hold {tensors:,} tensors")


def _numbers(config: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(config, dict | list) and depth < 20:
        for name, value in config.items() if isinstance(config, dict) else ((key, value) for value in config):
            yield from _numbers(value, str(name), depth + 1)
    else:
        yield key, config
