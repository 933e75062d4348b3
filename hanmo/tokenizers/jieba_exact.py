"""Cuts text into jieba's words (accurate mode, default dictionary), exactly, with its compiled sibling rjieba."""

import re
from collections.abc import Callable
from functools import lru_cache
from math import log
from typing import Any

import rjieba

CAPACITY = 1 << 18  # entries of a ``BoundedCache``

_FIRST, _LAST = "\u4e00", "\u9fd5"  # the characters that jieba treats as Chinese
_HAN = f"{_FIRST}-{_LAST}"
_LATIN = r"a-zA-Z0-9+#&._%\-"  # may be in one block with Chinese characters; all others are separators
# Chinese to rjieba, but not to jieba; and lone surrogates (broken JSON), which rjieba cannot read.
_APART = "\u3400-\u4dbf\u9fd6-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\ud800-\udfff"
_LATIN_WORDS = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
_PARTS = re.compile(f"([{_HAN}]+)")
_ANY_LATIN = re.compile(f"[{_LATIN}]")
_SLOW = re.compile(r"AT&T|[cC]#|[cC]\+\+")  # words of the dictionary without a Chinese character
_LONGEST = 16  # characters of the longest word
_COUNTED_TWICE = 3  # frequency of B超, a line that jieba's dictionary has, and jieba counts, twice
_IMPOSSIBLE = -3.14e100  # jieba's value for log 0
_NOWHERE = (_IMPOSSIBLE,) * 4


class WordCutter:
    """Cuts text into words as jieba does.

    rjieba finds the most probable path through the dictionary, with jieba's sums. Three differences are corrected here:
    its hidden Markov model, which finds words in runs of single characters, is rounded, so ours has jieba's own numbers;
    it joins Latin letters and digits by another rule; and it counts more characters as Chinese. In the few blocks with
    one of the dictionary's purely Latin words, or of ``added``, the path is found here.

    ``further`` characters may be parts of words too; ``added`` words, each with one of these, have the frequency 1.
    """

    def __init__(self, further: str = "", added: tuple[str, ...] = ()) -> None:
        block = f"{_LATIN}{re.escape(further)}"
        # Anchored at the beginning of a block, so that a long one is not tried from each of its characters.
        self._special = re.compile(f"((?<![{_HAN}{block}])[{_HAN}]*[{block}][{_HAN}{block}]*|[{_APART}])")
        self._slow = re.compile(f"{_SLOW.pattern}|[{re.escape(further)}]") if further else _SLOW
        self._added = added
        self._blocks = BoundedCache(self._block_words)
        self._runs = BoundedCache(self._run_words)

    def __call__(self, text: str) -> list[str]:
        words: list[str] = []
        cut = _rjieba(self._added).cut
        for index, part in enumerate(self._special.split(text)):
            if index % 2:
                words += self._blocks[part]
            elif part:
                run = ""
                for word in cut(part, False):
                    if len(word) == 1 and _FIRST <= word <= _LAST:
                        run += word
                        continue
                    if run:
                        words += self._runs[run]
                        run = ""
                    words.append(word)
                if run:
                    words += self._runs[run]
        return words

    def _block_words(self, block: str) -> list[str]:
        """Words of a block with Latin letters or digits, or of a separate character."""
        if len(block) == 1:
            return [block]
        words: list[str] = []
        run = ""
        slow = self._slow.search(block)
        for word in _route(block, self._added) if slow else _rjieba(self._added).cut(block, False):
            if len(word) == 1 or (word.isascii() and not slow):
                run += word
                continue
            words += self._run_words(run)
            words.append(word)
            run = ""
        return words + self._run_words(run)

    def _run_words(self, run: str) -> list[str]:
        """The hidden Markov model's words of a run of single characters; Latin words stay whole."""
        if len(run) < 2 or _rjieba(self._added).has_word(run):  # a word that was less probable than its characters
            return [*run]
        if run[0] >= _FIRST and run[-1] >= _FIRST and not _ANY_LATIN.search(run):
            return _viterbi(run)
        words: list[str] = []
        for index, part in enumerate(_PARTS.split(run)):
            if index % 2:
                words += _viterbi(part)
            elif part:
                words += filter(None, _LATIN_WORDS.split(part))
        return words


class BoundedCache(dict[str, list[Any]]):
    """The results of a function by its argument; a full cache is emptied."""

    def __init__(self, function: Callable[[str], list[Any]]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, key: str) -> list[Any]:
        if len(self) >= CAPACITY:
            self.clear()
        value = self[key] = self._function(key)
        return value


@lru_cache(maxsize=2)
def _rjieba(added: tuple[str, ...]) -> rjieba.Jieba:
    """rjieba with jieba's sum of all frequencies, whose rounding decides between equally probable paths."""
    cutter = rjieba.Jieba()
    cutter.add_word("\0", _COUNTED_TWICE, None)  # never found, like the added words
    for word in added:
        cutter.add_word(word, 1, None)
    return cutter


@lru_cache(maxsize=1)
def read_frequencies() -> tuple[dict[str, str], int]:
    """The words of jieba's dictionary with their frequencies, and the sum of these."""
    import jieba

    # Its own reader uses a cache in the shared temporary folder, perhaps stale, half written or another user's.
    with jieba.Tokenizer().get_dict_file() as file:
        fields = file.read().decode("utf-8").split()  # word, frequency, part of speech; repeated
    return dict(zip(fields[::3], fields[1::3], strict=True)), sum(map(int, fields[1::3]))


def _route(block: str, added: tuple[str, ...]) -> list[str]:
    """The most probable path through the dictionary, summed in jieba's order; the longer word wins a tie."""
    frequencies, total = read_frequencies()
    log_total = log(total + len(added))
    best = [(0.0, 0)] * (len(block) + 1)
    for start in range(len(block) - 1, -1, -1):
        found = []
        for end in range(start + 1, min(start + _LONGEST, len(block)) + 1):
            word = block[start:end]
            frequency = 1 if word in added else int(frequencies.get(word, 0))
            if frequency:
                found.append((log(frequency) - log_total + best[end][0], end))
        best[start] = max(found) if found else (log(1) - log_total + best[start + 1][0], start + 1)
    words = []
    start = 0
    while start < len(block):
        words.append(block[start : best[start][1]])
        start = best[start][1]
    return words


@lru_cache(maxsize=1)
def read_markov() -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, tuple[float, ...]]]:
    """jieba's hidden Markov model: log P(first state), log P(state | state before), by character log P(it | state).

    The states are B(egin), E(nd), M(iddle) and S(ingle).
    """
    from jieba.finalseg import emit_P, start_P, trans_P

    characters = set().union(*emit_P.values())
    return start_P, trans_P, {c: tuple(emit_P[state].get(c, _IMPOSSIBLE) for state in "BEMS") for c in characters}


def _viterbi(run: str) -> list[str]:
    """Words of a run of Chinese characters: the most probable path through the states, summed in jieba's order."""
    first, then, emissions = read_markov()
    be, bm, eb, es = then["B"]["E"], then["B"]["M"], then["E"]["B"], then["E"]["S"]
    me, mm, sb, ss = then["M"]["E"], then["M"]["M"], then["S"]["B"], then["S"]["S"]
    at_b, at_e, at_m, at_s = emissions.get(run[0], _NOWHERE)
    if len(run) == 2:  # most are; a shortcut to the same sums
        _, then_e, _, then_s = emissions.get(run[1], _NOWHERE)
        return [run] if first["B"] + at_b + be + then_e > first["S"] + at_s + ss + then_s else [*run]
    b, e, m, s = first["B"] + at_b, first["E"] + at_e, first["M"] + at_m, first["S"] + at_s
    # the origin of the best path to a state at each further character: S or E for B and S; M or B for E and M
    from_s_to_b, from_m_to_e, from_m_to_m, from_s_to_s = [False], [False], [False], [False]
    for character in run[1:]:  # on a tie the state whose letter comes later wins
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
