"""Verifiers of a reply's text: exact and contained answers, length, repetition, language, format."""

import re
import unicodedata
from collections import Counter

from hanmo.errors import ConfigError

PATTERN_SECONDS = 2.0  # for matching one reply
_KEPT = re.compile(r"(?<=\d)[.:/](?=\d)|(?<!\w)-(?=\d)|(?<=\d)%")  # marks that belong to a number
_SPACES = re.compile(r"(?<![a-z0-9]) | (?![a-z0-9])")


def final(reply: str) -> str:
    """What follows the reasoning: the text behind the last </think>."""
    return reply.rpartition("</think>")[2].strip()


def normalised(text: str) -> str:
    """Text without differences of width, case, punctuation and spaces; spaces between letters or digits stay.

    Width: Unicode's NFKC. Marks inside numbers (1.5, -3, 50%) stay.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").casefold()
    kept = {found.start() for found in _KEPT.finditer(text)}
    parts = (c if place in kept or unicodedata.category(c)[0] in "LNM" else " " for place, c in enumerate(text))
    return _SPACES.sub("", " ".join("".join(parts).split()))


def exact(reply: str, answer: str) -> bool | None:
    """Whether the reply is the answer, but for width, case, punctuation and spaces; None if the answer has no letters."""
    wanted = normalised(answer)
    return normalised(final(reply)) == wanted if wanted else None


def contains(reply: str, answer: str) -> bool | None:
    """Whether the answer stands in the reply, compared as by ``exact``; not as a part of a number or of a Latin word."""
    text, wanted = normalised(final(reply)), normalised(answer)
    if not wanted:
        return None
    before = r"(?<![\d.])" if wanted[0].isdigit() else r"(?<![a-z])" if wanted[0].isascii() else ""
    behind = r"(?!\.?\d)" if wanted[-1].isdigit() else r"(?![a-z0-9])" if wanted[-1].isascii() else ""
    return re.search(before + re.escape(wanted) + behind, text) is not None


def length(reply: str, least: int = 0, most: int | None = None) -> bool:
    """Whether the reply has ``least`` to ``most`` characters, white space not counted; ``most`` None: no bound."""
    if most is not None and not 0 <= least <= most:
        raise ConfigError(f"length: least={least} and most={most}: expected 0 <= least <= most")
    count = sum(not character.isspace() for character in reply)
    return count >= least and (most is None or count <= most)


def repetition(reply: str, size: int = 4) -> float:
    """The share of n-grams of ``size`` characters that stood in the reply before; 0 for a reply of fewer characters.

    Source: Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training" (seq-rep-n). Give it a negative weight.
    """
    if size < 1:
        raise ConfigError(f"repetition: size={size}: must be at least 1")
    text = "".join(reply.split())
    grams = Counter(text[place : place + size] for place in range(len(text) - size + 1))
    return 1 - len(grams) / grams.total() if grams else 0.0


def chinese(reply: str) -> float:
    """The share of Chinese characters (Unicode's unified ideographs) among the letters of the reply; 0 without letters."""
    letters = [character for character in reply if character.isalpha()]
    found = sum(unicodedata.name(character, "").startswith("CJK ") for character in letters)
    return found / len(letters) if letters else 0.0


def format(reply: str, pattern: str) -> bool:
    """Whether the whole reply, without white space at its ends, matches a regular expression, whose dot takes line breaks.

    ConfigError if it is none, or if matching takes more than ``PATTERN_SECONDS``: repeats in repeats may take years.
    """
    import regex

    try:
        return regex.fullmatch(pattern, reply.strip(), regex.DOTALL, timeout=PATTERN_SECONDS) is not None
    except regex.error as error:
        raise ConfigError(f"format: pattern {pattern!r}: no regular expression: {error}") from None
    except TimeoutError:
        advice = "write it without repeats in repeats, such as (a+)+"
        raise ConfigError(f"format: pattern {pattern!r}: takes more than {PATTERN_SECONDS} seconds; {advice}") from None
