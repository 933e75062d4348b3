"""Cleaning steps that look at one record at a time. Each is a dataclass whose fields are its thresholds.

The filters are those of the papers of EVA (arXiv 2108.01547) and EVA 2.0 (arXiv 2203.09313); their code and word lists
were never released, so the thresholds are ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from hanmo.config import require
from hanmo.data.prepare.cleaning.personal import found, masked
from hanmo.data.prepare.normalisation import normalised
from hanmo.files import package_yaml
from hanmo.records import opened_text

Turns = Sequence[str]  # of a dialogue; or a prompt and an answer, or one text


class Step:
    """A cleaning step. Its effect on a record depends on that record alone."""

    needs_fit = False

    def edit(self, turns: Turns) -> list[str]:
        """As many turns, changed or not."""
        return list(turns)

    def fault(self, turns: Turns) -> str | None:
        """The reason to remove the record, or None."""
        return None

    def faults(self, many: Sequence[Turns]) -> list[str | None]:
        return [self.fault(turns) for turns in many]

    def files(self) -> list[Path]:
        """The files that the step reads."""
        return [value for value in vars(self).values() if isinstance(value, Path)]

    def fit(self, turns: Turns) -> None:
        """Collect statistics from a record before any record is checked."""


def require_shares(step: Any, *names: str) -> None:
    """Raise ConfigError for a setting that is no share."""
    require(step, **{name: (0 <= getattr(step, name) <= 1, "between 0 and 1") for name in names})


@cache
def built_in() -> dict[str, list[str]]:
    return dict(package_yaml("hanmo.data.prepare.cleaning", "lists.yaml"))


def word_list(path: Path | None) -> list[str]:
    """A user's list, if any: a word or phrase a line; lines that begin with # are comments."""
    if path is None:
        return []
    with opened_text(path) as file:
        return [line.strip() for line in file if line.strip() and not line.startswith("#")]


def _matcher(words: Sequence[str]) -> re.Pattern[str]:
    """Finds the words in normalised text, the longest first."""
    plain = sorted({normalised(word) for word in words} - {""}, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, plain)) or "(?!)")  # matches nothing


@dataclass
class PlatformMarkup(Step):
    """Removes markup of platforms (回复@name:, //@name:, @name, 转发微博), and surplus white space."""

    _marks = re.compile("|".join(built_in()["platform_markup"]))

    def edit(self, turns: Turns) -> list[str]:
        # Lines matter in a text, so white space shrinks only where it is not a line break.
        return [re.sub(r"[^\S\n]{2,}", " ", self._marks.sub("", turn)).strip() for turn in turns]


URL = re.compile("|".join(built_in()["url"]), re.IGNORECASE)


@dataclass
class Urls(Step):
    """Removes addresses of web pages; ``remove``: removes the record instead."""

    remove: bool = False

    def edit(self, turns: Turns) -> list[str]:
        return list(turns) if self.remove else [URL.sub("", turn).strip() if "." in turn else turn for turn in turns]

    def fault(self, turns: Turns) -> str | None:
        hit = next((hit for turn in turns if (hit := URL.search(turn))), None) if self.remove else None
        return f"address {hit.group()}" if hit else None


@dataclass
class RepeatedRuns(Step):
    """Shortens runs of repeated text (哈哈哈哈哈哈哈, 好不好好不好好不好) to ``most`` times."""

    most: int = 3

    def __post_init__(self) -> None:
        require(self, most=(1 <= self.most <= 1000, "between 1 and 1000"))

    def edit(self, turns: Turns) -> list[str]:
        return [self._long.sub(lambda found: found.group(1) * self.most, turn) for turn in turns]

    @cached_property
    def _long(self) -> re.Pattern[str]:
        return re.compile(rf"([^\d\s]|[^\d\s]{{2,4}}?)\1{{{self.most},}}")


@dataclass
class Length(Step):
    """Characters of every turn, without white space."""

    shortest: int = 1
    longest: int = 128

    def fault(self, turns: Turns) -> str | None:
        for number, turn in enumerate(turns, 1):
            size = len("".join(turn.split()))
            if not self.shortest <= size <= self.longest:
                return f"turn {number} has {size} characters"
        return None


@dataclass
class TurnCount(Step):
    """How many turns a dialogue has."""

    fewest: int = 2
    most: int = 30

    def fault(self, turns: Turns) -> str | None:
        return None if self.fewest <= len(turns) <= self.most else f"{len(turns)} turns"


_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_OTHER_SCRIPTS = re.compile(r"[\u3040-\u30ff\uac00-\ud7af\u0400-\u04ff\u0600-\u06ff\u0e00-\u0e7f]")


def han_share(text: str) -> float:
    """The share of Chinese characters among letters and digits; 0 where there are none."""
    letters = sum(map(str.isalnum, text))
    return len(_HAN.findall(text)) / letters if letters else 0.0


@dataclass
class Language(Step):
    """Chinese: the least share of Chinese characters among letters, and the largest of kana, Hangul and the like."""

    least: float = 0.5
    foreign: float = 0.1
    turn_by_turn: bool = False  # check every turn by itself, not the record as a whole

    def __post_init__(self) -> None:
        require_shares(self, "least", "foreign")

    def fault(self, turns: Turns) -> str | None:
        for text in turns if self.turn_by_turn else ["".join(turns)]:
            letters = sum(map(str.isalnum, text))
            if not letters:
                continue
            if (share := len(_HAN.findall(text)) / letters) < self.least:
                return f"{share:.0%} Chinese characters"
            if (share := len(_OTHER_SCRIPTS.findall(text)) / letters) > self.foreign:
                return f"{share:.0%} of other scripts"
        return None


@dataclass
class Symbols(Step):
    """The largest share of a turn's characters that are not letters."""

    most: float = 0.6
    from_length: int = 4  # shorter turns ("？？", "!!!") may be nothing else

    def __post_init__(self) -> None:
        require_shares(self, "most")

    def fault(self, turns: Turns) -> str | None:
        for number, turn in enumerate(turns, 1):
            plain = "".join(turn.split())
            share = sum(not char.isalpha() for char in plain) / max(len(plain), 1)
            if len(plain) >= self.from_length and share > self.most:
                return f"turn {number} is {share:.0%} symbols"
        return None


@dataclass
class Repetition(Step):
    """Repetitive texts: the largest share of character n-grams, and of lines, that have come before."""

    n_gram: int = 4
    most: float = 0.4
    most_lines: float = 0.3
    from_length: int = 20

    def __post_init__(self) -> None:
        require(self, n_gram=(self.n_gram >= 1, "at least 1"))
        require_shares(self, "most", "most_lines")

    def fault(self, turns: Turns) -> str | None:
        for turn in turns:
            if len(turn) < max(self.from_length, self.n_gram):
                continue
            grams = [turn[place : place + self.n_gram] for place in range(len(turn) - self.n_gram + 1)]
            share = 1 - len(set(grams)) / len(grams)
            if share > self.most:
                return f"{share:.0%} of the {self.n_gram}-grams repeat"
            rows = [row for row in map(str.strip, turn.split("\n")) if row]
            if len(rows) > 2 and (share := 1 - len(set(rows)) / len(rows)) > self.most_lines:
                return f"{share:.0%} of the lines repeat"
        return None


@dataclass
class RepeatsPrevious(Step):
    """Replies that only repeat the turn before."""

    def fault(self, turns: Turns) -> str | None:
        plain = [normalised(turn) for turn in turns]
        for number, (before, turn) in enumerate(pairwise(plain), 2):
            if turn and turn == before:
                return f"turn {number} repeats the one before"
        return None


@dataclass
class Generic(Step):
    """Replies that fit any message (不知道, 好的, 哈哈): the largest share of such turns; ``words`` adds a list."""

    most: float = 0.49
    words: Path | None = None

    def __post_init__(self) -> None:
        require_shares(self, "most")

    def fault(self, turns: Turns) -> str | None:
        share = sum(normalised(turn) in self._known for turn in turns) / len(turns)
        return f"{share:.0%} generic turns" if share > self.most else None

    @cached_property
    def _known(self) -> set[str]:
        return {normalised(text) for text in built_in()["generic"] + word_list(self.words)}


@dataclass
class Personal(Step):
    """Personal data: removes the record, or with ``mask`` puts a mark in its place (<电话>)."""

    kinds: tuple[str, ...] = ("phone", "id", "card", "email", "qq", "wechat")
    mask: bool = False

    def edit(self, turns: Turns) -> list[str]:
        return [masked(turn, self.kinds) for turn in turns] if self.mask else list(turns)

    def fault(self, turns: Turns) -> str | None:
        hit = None if self.mask else next((hit for turn in turns if (hit := found(turn, self.kinds))), None)
        return f"{hit[0]}: {hit[1]}" if hit else None


@dataclass
class Adverts(Step):
    """Adverts: one turn with a way of contact and an offer, or ``offers`` offers; ``words``: a list of sure signs."""

    offers: int = 3
    words: Path | None = None

    def fault(self, turns: Turns) -> str | None:
        contact, offer, sure = self._matchers
        for turn in turns:
            plain = normalised(turn)
            if hit := sure.search(plain):
                return f"advert: {hit.group()}"
            offered, asked = dict.fromkeys(offer.findall(plain)), contact.search(plain)
            if offered and (asked or len(offered) >= self.offers):
                return "advert: " + ", ".join([*([asked.group()] if asked else []), *offered])
        return None

    @cached_property
    def _matchers(self) -> list[re.Pattern[str]]:
        return [_matcher(words) for words in (built_in()["contact"], built_in()["offer"], word_list(self.words))]


@dataclass
class Words(Step):
    """A user's word list (insults, politics, celebrities): removes records with ``least`` hits or more."""

    words: Path
    least: int = 1

    def fault(self, turns: Turns) -> str | None:
        hits = [hit for turn in turns for hit in self._pattern.findall(normalised(turn))]
        return f"words: {', '.join(dict.fromkeys(hits))}" if len(hits) >= self.least else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _matcher(word_list(self.words))
