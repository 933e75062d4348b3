"""jieba's cutting of words (accurate mode, default dictionary), exactly, rearranged around a table of pieces.

Imports nothing of hanmo but fragments.py: its text is put into the tokenization.py that travels with exported models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, log
from typing import Any

import numpy

from hanmo.families.fragments import MARK, Crossings, Joined, Table, Values, codes_of, packed, unpacked

_SHORT = 200  # characters; for longer texts numpy is worth calling
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


def markov_words_of(runs: Sequence[str]) -> list[list[str]]:
    """``markov_words`` of many runs of Chinese characters at once: the same additions, for runs of one length by numpy."""
    first, then, _ = read_markov()
    emissions = _emissions()
    words: list[list[str]] = [[] for _ in runs]
    by_size: dict[int, list[int]] = {}
    for index, run in enumerate(runs):
        by_size.setdefault(len(run), []).append(index)
    for size, indices in by_size.items():
        codes_NT = codes_of("".join([runs[index] for index in indices])).reshape(-1, size)
        at_TSN = emissions[codes_NT.T].transpose(0, 2, 1)  # states: B, E, M, S
        b, e, m, s = (first[state] + at for state, at in zip("BEMS", at_TSN[0], strict=True))
        from_later_TSN = numpy.zeros((size, 4, len(indices)), bool)  # S rather than E, M rather than B
        for place in range(1, size):
            at_b, at_e, at_m, at_s = at_TSN[place]
            paths = (
                (e + then["E"]["B"] + at_b, s + then["S"]["B"] + at_b),
                (b + then["B"]["E"] + at_e, m + then["M"]["E"] + at_e),
                (b + then["B"]["M"] + at_m, m + then["M"]["M"] + at_m),
                (e + then["E"]["S"] + at_s, s + then["S"]["S"] + at_s),
            )
            for state, (earlier, later) in enumerate(paths):
                from_later_TSN[place, state] = later >= earlier
            b, e, m, s = (numpy.maximum(earlier, later) for earlier, later in paths)
        states = numpy.where(s >= e, 3, 1)
        is_end_TN = numpy.empty((size, len(indices)), bool)
        for place in range(size - 1, -1, -1):
            is_end_TN[place] = states & 1  # E and S end a word
            later = from_later_TSN[place, states, numpy.arange(len(indices))]
            before_first, before_rest = numpy.where(later, 3, 1), numpy.where(later, 2, 0)
            states = numpy.where((states == 0) | (states == 3), before_first, before_rest)
        is_end_TN[-1] = True
        for index, is_end in zip(indices, is_end_TN.T.tolist(), strict=True):
            run, start = runs[index], 0
            for end, ends in enumerate(is_end, 1):
                if ends:
                    words[index].append(run[start:end])
                    start = end
    return words


@lru_cache(maxsize=1)
def _emissions() -> Any:
    """(code points up to the last Chinese one, 4): P(character | state) as ``read_markov`` gives it."""
    table = numpy.full((0x9FD6, 4), _IMPOSSIBLE)
    for character, row in read_markov()[2].items():
        if ord(character) < len(table):
            table[ord(character)] = row
    return table


@dataclass(frozen=True)
class Dictionary:
    """jieba's dictionary, in the forms that cutting needs."""

    block: re.Pattern[str]  # runs of characters that words are looked for in; all others are separators
    scores: dict[str, float]  # log probability of each word
    lonely: float  # of a character that no word starts with
    longest: int  # characters of the longest word
    pairs: frozenset[str]  # neighbouring characters inside words
    crossings: Crossings
    in_block: Any  # (code points,) bool: characters of blocks


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
    in_block = numpy.zeros(0x110000, bool)
    in_block[[code for code in range(0x10000) if block.match(chr(code))]] = True
    log_total = log(total + len(added))
    logs = {frequency: log(frequency) - log_total for frequency in {1, *frequencies.values()}}
    return Dictionary(
        block,
        {word: logs[frequency] for word, frequency in frequencies.items()},
        logs[1],
        max(map(len, frequencies)),
        frozenset(filter(block.fullmatch, pairs_of(frequencies))),
        Crossings(frequencies),
        in_block,
    )


_ALONE, _WORDS, _DOUBTFUL = range(3)  # what a piece is: single characters only, with values of its own, not trusted


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
    trusted to the table; the text around it is computed in full, with jieba's own order of additions.

    Args:
        value: what a word or a separator becomes (its ids, say).
        dictionary: what ``read_dictionary`` returns.
        dtype: of values, as numpy calls it.
    """

    MARGIN = 1e-6  # log probability; for the two lengths below, rounding errors stay under 2e-7
    LONGEST_PIECE = 64
    LONGEST_TEXT = 1_000_000
    TABLE_SIZE = 1 << 19  # entries; a full table is emptied

    def __init__(self, value: Callable[[str], Sequence[Any]], dictionary: Dictionary, dtype: Any = numpy.int32) -> None:
        self._value = value
        self.dictionary = dictionary
        self._dtype = dtype
        self._words: dict[str, tuple[Any, ...]] = {}
        self._empty()

    def _empty(self) -> None:
        self._values = Values(self._dtype)
        # Of a piece: its row of values, how many single characters before and behind them, and what it is.
        self._entries = Values(numpy.int32, (0, 0, 0, _WORDS))
        self._pieces = Table(self._learn_pieces, self._entries)
        self._runs = Table(self._learn_runs, self._values)

    def __call__(self, text: str) -> list[Any]:
        """The values of all words of a text, one after the other."""
        return self._in_full(text) if len(text) < _SHORT else self.many([text])[0]

    def many(self, texts: Sequence[str]) -> list[list[Any]]:
        """The values of all words of each text. Faster than one by one; memory grows with the sum of the lengths."""
        return unpacked(*self.packed(texts))

    def packed(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """(texts,) how many values each text has; and the values, end to end."""
        if len(self._entries) + len(self._values) > self.TABLE_SIZE:
            self._empty()
        in_full = {index for index, text in enumerate(texts) if MARK in text or len(text) > self.LONGEST_TEXT}
        joined = Joined(["" if index in in_full else text for index, text in enumerate(texts)] if in_full else texts)
        ends = numpy.flatnonzero(~self._crossed(joined.codes)) + 1
        starts = numpy.append(0, ends[:-1])
        _, entries = self._entries(self._pieces(joined, starts, ends))
        rows, heads, tails, kinds = entries.reshape(-1, 4).T
        # Runs of single characters lie between the values of one piece and the values of a later one.
        places = numpy.flatnonzero(kinds != _ALONE)
        run_starts, run_ends = (ends - tails)[places[:-1]], (starts + heads)[places[1:]]
        runs = numpy.flatnonzero(run_starts < run_ends)
        numbers = numpy.zeros(2 * len(places), numpy.int32)
        numbers[::2] = rows[places]
        numbers[2 * runs + 1] = self._runs(joined, run_starts[runs], run_ends[runs])
        counts, flat = self._values(numbers)
        marks = numpy.flatnonzero(joined.marks[starts[places]])
        lengths = numpy.diff(numpy.cumsum(counts)[2 * marks])
        doubtful = numpy.flatnonzero(kinds[places] == _DOUBTFUL)
        in_full.update((numpy.searchsorted(marks, doubtful) - 1).tolist())
        if in_full:
            parts = numpy.split(flat, numpy.cumsum(lengths)[:-1])
            for index in in_full:
                _, parts[index] = packed([self._in_full(texts[index])], self._dtype)
                lengths[index] = len(parts[index])
            flat = numpy.concatenate(parts)
        return lengths, flat

    def _crossed(self, codes: Any) -> Any:
        """Whether a place and the next belong together."""
        crossed = self.dictionary.crossings(codes)
        in_block = self.dictionary.in_block[codes]
        crossed &= in_block
        crossed[:-1] &= in_block[1:]
        crossed[:-1] |= (codes[:-1] == ord("\r")) & (codes[1:] == ord("\n"))  # jieba takes them as one separator
        return crossed

    def _in_full(self, text: str) -> list[Any]:
        """The values of a text without the table of pieces: block by block, as jieba does it."""
        values: list[Any] = []
        for index, block in enumerate(self.dictionary.block.split(text)):
            run = ""
            for word in self._route(block)[0] if index % 2 else _SEPARATOR.findall(block):
                if index % 2 and len(word) == 1:
                    run += word
                    continue
                if run:
                    values += self._run_values(run)
                    run = ""
                values += self._word(word)
            if run:
                values += self._run_values(run)
        return values

    def _learn_pieces(self, pieces: list[str]) -> tuple[Any, Any]:
        """The entries of pieces; values go to their own table."""
        entries, rows = [], []
        for piece in pieces:
            head, values, tail, kind = self._entry(piece)
            entries.append((head, tail, kind))
            rows.append(values)
        numbers = self._values.append(*packed(rows, self._dtype))
        learnt = numpy.empty((len(pieces), 4), numpy.int32)
        learnt[:, 0] = numbers
        learnt[:, 1:] = entries
        return numpy.full(len(pieces), 4), learnt.reshape(-1)

    def _entry(self, piece: str) -> tuple[int, Sequence[Any], int, int]:
        """How many single characters come first, the values of what follows, how many characters end it, its kind."""
        if not self.dictionary.block.match(piece):
            return 0, self._word(piece), 0, _WORDS
        if len(piece) > self.LONGEST_PIECE:
            return 0, (), 0, _DOUBTFUL
        words, margin = self._route(piece, whole=True)
        if margin <= self.MARGIN:
            return 0, (), 0, _DOUBTFUL
        head, run = 0, ""
        values: list[Any] | None = None
        for word in words:
            if len(word) == 1:
                run += word
                continue
            if values is None:
                head, values = len(run), []
            elif run:
                values += self._run_values(run)
            values += self._word(word)
            run = ""
        return (0, (), 0, _ALONE) if values is None else (head, values, len(run), _WORDS)

    def _route(self, block: str, whole: bool = False) -> tuple[list[str], float]:
        """The most probable words of a block, and by how much the closest decision on the way was made.

        Sums run from the right and the longer word wins a tie, as in jieba. ``whole``: the block is a piece, so that
        a word may reach from any place to its end.
        """
        size = len(block)
        if size == 1:
            return [block], inf
        find, longest, lonely = self.dictionary.scores.get, self.dictionary.longest, self.dictionary.lonely
        pairs = self.dictionary.pairs
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

    def _learn_runs(self, runs: list[str]) -> tuple[Any, Any]:
        unknown = [run for run in runs if len(run) > 1 and run not in self.dictionary.scores]
        han = [run for run in unknown if _HAN.fullmatch(run)]
        found = dict(zip(han, markov_words_of(han), strict=True)) if han else {}
        return packed([self._run_values(run, found.get(run)) for run in runs], self._dtype)

    def _run_values(self, run: str, words: Sequence[str] | None = None) -> list[Any]:
        """The values of a run of single characters: words of the hidden Markov model, unless the run is a word."""
        if words is None:
            words = run if len(run) == 1 or run in self.dictionary.scores else markov_words(run)
        values: list[Any] = []
        for word in words:
            values += self._words[word] if word in self._words else self._word(word)
        return values

    def _word(self, word: str) -> tuple[Any, ...]:
        if word in self._words:
            return self._words[word]
        values = tuple(self._value(word))
        return _keep(self._words, word, values, self.TABLE_SIZE) if len(word) <= self.LONGEST_PIECE else values
