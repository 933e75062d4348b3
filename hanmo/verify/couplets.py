"""The verifier of couplets: whether a second line (下联) goes with the first one (上联) in length, words and tones."""

import re
import unicodedata
from functools import lru_cache

from hanmo.errors import UnsupportedError
from hanmo.verify.texts import final

_FIRST = re.compile(r"上联\s*(?:是|为)?\s*[:：]?")
_SECOND = re.compile(r"下联\s*(?:是|为)?\s*[:：]?")
LEVEL, OBLIQUE = "平", "仄"


def couplet(reply: str, first: str) -> float | None:
    """The share of places whose tones are opposed; 0 if the lines differ in length or have a character in the same place.

    Rule: of the places 2, 4, 6, … of every clause and of the last place one line has a level tone (平) and the other an
    oblique one (仄), by the tones of today (中华新韵, 2005: the tones 1 and 2 are level, 3 and 4 oblique). A character of
    several readings, rare ones included, takes either, one without a tone both. The line is what follows 下联：, or the
    reply's first line. None if ``first`` has no Chinese character. UnsupportedError without the package pypinyin.
    """
    above, below = _clauses(_line(first, _FIRST)), _clauses(_line(final(reply), _SECOND))
    if not above:
        return None
    if list(map(len, above)) != list(map(len, below)):
        return 0.0
    pairs = [list(zip(*clauses, strict=True)) for clauses in zip(above, below, strict=True)]
    if any(one == other for clause in pairs for one, other in clause):
        return 0.0
    places = [pair for clause in pairs for pair in clause[1::2]]
    if len(pairs[-1]) % 2:
        places.append(pairs[-1][-1])
    return sum(map(_opposed, places)) / len(places)


def _line(text: str, mark: re.Pattern[str]) -> str:
    """The line behind the mark, up to the mark of the other one; without a mark the first line."""
    found = mark.search(text)
    text = text[found.end() :] if found else text
    lines = (_SECOND.split(text)[0] if mark is _FIRST else text).strip().splitlines()
    return lines[0] if lines else ""


def _clauses(line: str) -> list[str]:
    """The parts between punctuation, of Chinese characters."""
    parts = re.split(r"\W+", "".join(line.split()))
    return [part for part in parts if any(unicodedata.name(one, "").startswith("CJK ") for one in part)]


def _opposed(pair: tuple[str, str]) -> bool:
    one, other = map(tones, pair)
    return (LEVEL in one and OBLIQUE in other) or (OBLIQUE in one and LEVEL in other)


@lru_cache(maxsize=1 << 14)
def tones(character: str) -> frozenset[str]:
    """平, 仄 or both, by all readings of a character."""
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        raise UnsupportedError("couplet: tones need the package pypinyin: pip install 'hanmo[verify]'") from None
    readings = pinyin(character, heteronym=True, style=Style.TONE3, neutral_tone_with_five=True)[0]
    kinds = {"1": LEVEL, "2": LEVEL, "3": OBLIQUE, "4": OBLIQUE}
    return frozenset().union(*(kinds.get(reading[-1:], LEVEL + OBLIQUE) for reading in readings))
