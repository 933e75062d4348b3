"""jieba's cutting of words (accurate mode, default dictionary), exactly, rearranged around a table of pieces.

Imports nothing of hanmo: its text is put into the tokenization.py that travels with exported models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import inf, log
from typing import Any

import numpy

_MARK = "\0"  # stands between pieces; a text that contains it is cut without the table of pieces
_SHORT = 200  # characters; longer texts are split by numpy
_SEPARATOR = re.compile(r"\r\n|.", re.DOTALL)
_HAN = re.compile("([\u4e00-\u9fd5]+)")
_LATIN = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
_IMPOSSIBLE = -3.14e100  # jieba's log 0
_NOWHERE = (_IMPOSSIBLE,) * 4


def pairs_of(words: Iterable[str]) -> set[str]:
    """All pairs of neighbouring characters inside words."""
    pairs: set[str] = set()
    for word in words:
        if len(word) == 2:
            pairs.add(word)
        else:
            pairs.update(map(str.__add__, word, word[1:]))
    return pairs


@lru_cache(maxsize=1)
def read_markov() -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, tuple[float, ...]]]:
    """jieba's hidden Markov model, as log probabilities: P(first state), P(state | state before), P(character | state).

    The last is by character, for the states B(egin), E(nd), M(iddle) and S(ingle).
    """
    from jieba.finalseg import emit_P, start_P, trans_P

    characters = set().union(*emit_P.values())
    return start_P, trans_P, {c: tuple(emit_P[state].get(c, _IMPOSSIBLE) for state in "BEMS") for c in characters}


def markov_words(run: str) -> list[str]:
    """The words that jieba's hidden Markov model finds in a run of single characters; Latin and digits stay whole."""
    words: list[str] = []
    for index, part in enumerate(_HAN.split(run)):
        if index % 2:
            words += _viterbi(part)
        elif part:
            words += filter(None, _LATIN.split(part))
    return words


def _viterbi(run: str) -> list[str]:
    """Words of a run of Chinese characters: the most probable path through the states B, E, M and S.

    Sums are added in jieba's order; on a tie the state whose letter comes later wins.
    """
    first, then, emissions = read_markov()
    be, bm, eb, es = then["B"]["E"], then["B"]["M"], then["E"]["B"], then["E"]["S"]
    me, mm, sb, ss = then["M"]["E"], then["M"]["M"], then["S"]["B"], then["S"]["S"]
    at_b, at_e, at_m, at_s = emissions.get(run[0], _NOWHERE)
    b, e, m, s = first["B"] + at_b, first["E"] + at_e, first["M"] + at_m, first["S"] + at_s
    # where the best path to a state comes from, at each further character: S or E to B and S; M or B to E and M
    from_s_to_b, from_m_to_e, from_m_to_m, from_s_to_s = [False], [False], [False], [False]
    for character in run[1:]:
        at_b, at_e, at_m, at_s = emissions.get(character, _NOWHERE)
        b_e, b_s = e + eb + at_b, s + sb + at_b
        e_b, e_m = b + be + at_e, m + me + at_e
        m_b, m_m = b + bm + at_m, m + mm + at_m
        s_e, s_s = e + es + at_s, s + ss + at_s
        from_s_to_b.append(b_s >= b_e)
        from_m_to_e.append(e_m >= e_b)
        from_m_to_m.append(m_m >= m_b)
        from_s_to_s.append(s_s >= s_e)
        b = b_s if b_s >= b_e else b_e
        e = e_m if e_m >= e_b else e_b
        m = m_m if m_m >= m_b else m_b
        s = s_s if s_s >= s_e else s_e
    words: list[str] = []
    start = end = len(run)
    state = "S" if s >= e else "E"
    while start:
        start -= 1
        if state == "E":
            state = "M" if from_m_to_e[start] else "B"
        elif state == "M":
            state = "M" if from_m_to_m[start] else "B"
        else:
            words.append(run[start:end])
            end = start
            state = "S" if (from_s_to_b if state == "B" else from_s_to_s)[start] else "E"
    if end:
        words.append(run[:end])
    return words[::-1]


class Crossings:
    """Where a text falls apart: between two neighbouring characters that no word of the dictionary runs across.

    Every run of 2, 3 or 4 characters that is a word (or 4 characters inside a longer one) has a bit in a table, by
    its hash. Two runs with one hash make pieces longer than they need be, which is harmless.
    """

    _BITS = 26  # of the hash: a table of 8 MB
    _FACTOR = numpy.uint32(0x9E3779B1)  # 2**32 divided by the golden ratio, as usual for hashing by multiplication

    def __init__(self, words: Iterable[str], block: re.Pattern[str]) -> None:
        self._in_block = numpy.zeros(0x110000, bool)
        self._in_block[[code for code in range(0x10000) if block.match(chr(code))]] = True
        table = numpy.zeros(1 << self._BITS, bool)
        by_size: dict[int, list[str]] = {2: [], 3: [], 4: []}
        for word in words:
            if len(word) in by_size:
                by_size[len(word)].append(word)
            elif len(word) > 4:
                by_size[4] += [word[start : start + 4] for start in range(len(word) - 3)]
        for size, grams in by_size.items():
            *_, hashes = self._hashes(_codes("".join(grams)), size)
            table[hashes[::size]] = True
        self._table = numpy.packbits(table, bitorder="little")

    def _hashes(self, codes: Any, longest: int = 4) -> Iterator[Any]:
        """For each size from 2 to ``longest``: the hash of that many characters from each place on."""
        running = codes * self._FACTOR
        for size in range(2, longest + 1):
            running = (running[:-1] + codes[size - 1 :]) * self._FACTOR
            yield running >> numpy.uint32(32 - self._BITS)

    def split(self, text: str) -> tuple[list[str], list[int]]:
        """The pieces of a text, and the indices of those that are ``_MARK``."""
        codes = _codes(text)
        crossed = numpy.zeros(len(codes), bool)  # between a place and the next
        for reach, hashes in enumerate(self._hashes(codes), 1):
            found = (self._table[hashes >> 3] >> (hashes & 7).astype(numpy.uint8) & 1).view(bool)
            for offset in range(reach):
                crossed[offset : offset + len(found)] |= found
        in_block = self._in_block[codes]
        crossed &= in_block
        crossed[:-1] &= in_block[1:]
        crossed[:-1] |= (codes[:-1] == ord("\r")) & (codes[1:] == ord("\n"))  # jieba takes them as one separator
        ends = numpy.flatnonzero(~crossed) + 1
        pieces = [text[start:end] for start, end in pairwise([0, *ends.tolist()])]
        return pieces, numpy.flatnonzero(codes[ends - 1] == ord(_MARK)).tolist()


def _codes(text: str) -> Any:
    return numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), numpy.uint32)


@dataclass(frozen=True)
class Dictionary:
    """jieba's dictionary, in the forms that cutting needs."""

    block: re.Pattern[str]  # runs of characters that words are looked for in; all others are separators
    scores: dict[str, float]  # log probability of each word
    lonely: float  # of a character that no word starts with
    longest: int  # characters of the longest word
    pairs: frozenset[str]  # neighbouring characters inside words
    crossings: Crossings


@lru_cache(maxsize=4)
def read_dictionary(further: str = "", added: tuple[str, ...] = ()) -> Dictionary:
    """jieba's own dictionary and words ``added`` with the frequency 1; ``further`` characters may be parts of words.

    The file is read here and not by a ``jieba.Tokenizer``: that keeps a cache file in the shared temporary folder,
    which may be stale, half written or another user's, and its module may have been patched by anyone.
    """
    import jieba

    block = re.compile(f"([\u4e00-\u9fd5a-zA-Z0-9+#&._%\\-{re.escape(further)}]+)")
    frequencies: dict[str, int] = {}
    total = 0
    with jieba.Tokenizer().get_dict_file() as file:
        for line in file.read().decode("utf-8").splitlines():
            word, frequency, _ = line.split(" ")
            frequencies[word] = int(frequency)
            total += int(frequency)
    frequencies |= dict.fromkeys(added, 1)
    log_total = log(total + len(added))
    logs = {frequency: log(frequency) - log_total for frequency in {1, *frequencies.values()}}
    return Dictionary(
        block,
        {word: logs[frequency] for word, frequency in frequencies.items()},
        logs[1],
        max(map(len, frequencies)),
        frozenset(["\r\n", *filter(block.fullmatch, pairs_of(frequencies))]),
        Crossings(frequencies, block),
    )


_Entry = tuple[str, "tuple[Any, ...] | None", str]
"""What a piece adds: single characters before its first longer word, values, single characters after its last.

The values are None where a piece has no longer word.
"""
_EMPTY: _Entry = ("", (), "")
_UNTRUSTED: _Entry = ("", (), "untrusted")  # told by identity


class _Pieces(dict[str, _Entry]):
    """The table of pieces; one that is not there is asked for."""

    def __init__(self, learn: Callable[[str], _Entry]) -> None:
        super().__init__()
        self._learn = learn

    def __missing__(self, piece: str) -> _Entry:
        return self._learn(piece)


def _keep(table: dict[str, Any], key: str, value: Any, limit: int) -> Any:
    if len(table) >= limit:
        table.clear()
    table[key] = value
    return value


class WordCutter:
    """jieba's accurate mode (HMM on), exactly, with the work done once per distinct piece of text.

    A text falls apart at every place that no word of the dictionary crosses. Inside such a piece the most probable
    path does not depend on the rest of the text, so its words are looked up in a table of pieces already met. Runs
    of single characters go to jieba's hidden Markov model, and their words are kept likewise.

    One thing does depend on the rest: where two paths are equally probable, jieba's choice hangs on the rounding of
    the sum over everything to the right. A piece whose best path is ahead by less than ``MARGIN`` is therefore not
    trusted to the table; the block around it is computed in full, with jieba's own order of additions.

    Args:
        value: what a word or a separator becomes (its ids, say).
        dictionary: what ``read_dictionary`` returns.
    """

    MARGIN = 1e-6  # log probability; for the two lengths below, rounding errors stay under 2e-7
    LONGEST_PIECE = 64
    LONGEST_TEXT = 1_000_000
    TABLE_SIZE = 1 << 19  # entries; a full table is emptied

    def __init__(self, value: Callable[[str], Sequence[Any]], dictionary: Dictionary) -> None:
        self._value = value
        self._dictionary = dictionary
        self._words: dict[str, tuple[Any, ...]] = {}
        self._runs: dict[str, tuple[Any, ...]] = {"": ()}
        self._pieces = _Pieces(self._learn)
        self._doubts = 0  # how often a piece was not to be trusted

    def __call__(self, text: str) -> list[Any]:
        """The values of all words of a text, one after the other."""
        if not text:
            return []
        if len(text) > _SHORT:
            return self.many([text])[0]
        if _MARK in text:
            return self._in_full(text)
        pairs = self._dictionary.pairs
        marked = [left if left + right in pairs else left + _MARK for left, right in pairwise(text)]
        marked.append(text[-1])
        entries = []
        for piece in "".join(marked).split(_MARK):
            entry = self._pieces[piece]
            if entry is _UNTRUSTED:
                return self._in_full(text)
            entries.append(entry)
        return self._joined(entries)

    def many(self, texts: Sequence[str]) -> list[list[Any]]:
        """The values of all words of each text. Faster than one by one; memory grows with the sum of the lengths."""
        plain = [text if _MARK not in text and len(text) <= self.LONGEST_TEXT else "" for text in texts]
        pieces, ends = self._dictionary.crossings.split(_MARK.join([*plain, ""]))
        doubts = self._doubts
        entries = list(map(self._pieces.__getitem__, pieces))
        if self._doubts > doubts:
            for index in [index for index, entry in enumerate(entries) if entry is _UNTRUSTED]:
                if entries[index] is _UNTRUSTED:
                    self._settle(pieces, entries, index)
        results = []
        start = 0
        for text, stand_in, end in zip(texts, plain, ends, strict=True):
            results.append(self._in_full(text) if text and not stand_in else self._joined(entries[start:end]))
            start = end + 1
        return results

    def _settle(self, pieces: list[str], entries: list[Any], index: int) -> None:
        """Put the values of a whole block in the place of the pieces it is made of."""
        start, end = index, index + 1
        while start and self._dictionary.block.match(pieces[start - 1]):
            start -= 1
        while end < len(pieces) and self._dictionary.block.match(pieces[end]):
            end += 1
        values = self._in_full("".join(pieces[start:end]))
        entries[start:end] = [("", tuple(values), ""), *[_EMPTY] * (end - start - 1)]

    def _joined(self, entries: Iterable[_Entry]) -> list[Any]:
        """The values of pieces in a row."""
        runs = self._runs
        values: list[Any] = []
        run = ""
        for head, middle, tail in entries:
            run += head
            if middle is not None:
                if run:
                    values += runs[run] if run in runs else self._run(run)
                values += middle
                run = tail
        if run:
            values += runs[run] if run in runs else self._run(run)
        return values

    def _in_full(self, text: str) -> list[Any]:
        """The values of a text without the table of pieces: block by block, as jieba does it."""
        entries: list[_Entry] = []
        for index, block in enumerate(self._dictionary.block.split(text)):
            if index % 2:
                entries.append(self._entry(self._route(block)[0]))
            else:
                entries += [("", self._word(separator), "") for separator in _SEPARATOR.findall(block)]
        return self._joined(entries)

    def _learn(self, piece: str) -> _Entry:
        """A piece that is not in the table."""
        if not self._dictionary.block.match(piece):
            entry: _Entry = ("", self._word(piece), "")
        else:
            entry = _UNTRUSTED
            if len(piece) <= self.LONGEST_PIECE:
                words, margin = self._route(piece, whole=True)
                if margin > self.MARGIN:
                    entry = self._entry(words)
            if entry is _UNTRUSTED:
                self._doubts += 1
                return entry
        return _keep(self._pieces, piece, entry, self.TABLE_SIZE)

    def _entry(self, words: list[str]) -> _Entry:
        head, run = "", ""
        values: list[Any] | None = None
        for word in words:
            if len(word) == 1:
                run += word
                continue
            if values is None:
                head, values = run, []
            elif run:
                values += self._run(run)
            values += self._word(word)
            run = ""
        return (run, None, "") if values is None else (head, tuple(values), run)

    def _route(self, block: str, whole: bool = False) -> tuple[list[str], float]:
        """The most probable words of a block, and by how much the closest decision on the way was made.

        Sums run from the right and the longer word wins a tie, as in jieba. ``whole``: the block is a piece, so that
        a word may reach from any place to its end.
        """
        size = len(block)
        if size == 1:
            return [block], inf
        find, longest, lonely = self._dictionary.scores.get, self._dictionary.longest, self._dictionary.lonely
        pairs = self._dictionary.pairs
        best_from, ends, leads = [0.0] * (size + 1), [0] * size, [inf] * size
        reach = size
        for start in range(size - 1, -1, -1):
            if not whole and block[start : start + 2] not in pairs:
                reach = start + 1
            score = find(block[start])
            where = start + 1
            best = (lonely if score is None else score) + best_from[where]
            second = -inf
            for end in range(start + 2, (reach if reach - start <= longest else start + longest) + 1):
                longer = find(block[start:end])
                if longer is None:
                    continue
                longer += best_from[end]
                if score is None or longer >= best:  # a single character that is no word is the last resort
                    if score is not None:
                        second = best
                    score = best = longer
                    where = end
                elif longer > second:
                    second = longer
            best_from[start], ends[start], leads[start] = best, where, best - second
        words: list[str] = []
        margin, start = inf, 0
        while start < size:
            words.append(block[start : ends[start]])
            if leads[start] < margin:
                margin = leads[start]
            start = ends[start]
        return words, margin

    def _run(self, run: str) -> tuple[Any, ...]:
        """The values of a run of single characters: words of the hidden Markov model, unless the run is a word."""
        if run in self._runs:
            return self._runs[run]
        values: list[Any] = []
        for word in run if len(run) == 1 or run in self._dictionary.scores else markov_words(run):
            values += self._words[word] if word in self._words else self._word(word)
        kept = tuple(values)
        return _keep(self._runs, run, kept, self.TABLE_SIZE) if len(run) <= self.LONGEST_PIECE else kept

    def _word(self, word: str) -> tuple[Any, ...]:
        if word in self._words:
            return self._words[word]
        values = tuple(self._value(word))
        return _keep(self._words, word, values, self.TABLE_SIZE) if len(word) <= self.LONGEST_PIECE else values
