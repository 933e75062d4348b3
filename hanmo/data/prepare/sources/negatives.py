"""Wrong answers, drawn from other records and never equal to the right one.

Each draw depends on the seed and the record's own key alone. The published data drew from Python sets, whose order
changes from run to run; ours can be repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from random import Random
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)  # a realm: draws never leave it, e.g. a split
G = TypeVar("G", bound=Hashable)  # a group within it: a length, a book, an author
TRIED = 64  # groups looked at when one with a fitting text is wanted


class Pools(Generic[K, G]):
    """Texts to draw from, in groups within realms. A text enters its group once."""

    def __init__(self) -> None:
        self._texts: dict[K, dict[G, dict[str, None]]] = {}
        self._lists: dict[tuple[K, G], list[str]] = {}
        self._groups: dict[K, list[G]] = {}

    def add(self, realm: K, group: G, text: str) -> None:
        """Add a text; all are added before any is drawn."""
        self._texts.setdefault(realm, {}).setdefault(group, {})[text] = None

    def draw(self, rng: Random, realm: K, group: G, count: int, never: Collection[str]) -> list[str]:
        """Up to ``count`` different texts of one group, none of them in ``never``; fewer where there are no more."""
        texts = self._lists.get((realm, group))
        if texts is None:
            texts = self._lists[realm, group] = list(self._texts.get(realm, {}).get(group, ()))
        drawn = rng.sample(texts, min(len(texts), count + len(never)))
        return [text for text in drawn if text not in never][:count]

    def draw_others(self, rng: Random, realm: K, group: G, count: int, never: Collection[str]) -> list[str]:
        """One text of each of up to ``count`` groups of the realm other than ``group``."""
        if realm not in self._groups:
            self._groups[realm] = list(self._texts.get(realm, ()))
        groups, found = self._groups[realm], list[str]()
        for other in rng.sample(groups, min(len(groups), TRIED)):
            if len(found) == count:
                break
            if other != group:
                found += self.draw(rng, realm, other, 1, {*never, *found})
        return found
