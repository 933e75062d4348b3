"""jieba's words (accurate mode, default dictionary), exactly, by way of its compiled sibling rjieba.

Imports nothing of hanmo: its text is put into the tokenization.py that travels with exported models.
"""

from __future__ import annotations

import logging
import re
import tempfile
from functools import lru_cache
from typing import Any

import rjieba

KEPT = 1 << 18  # entries of a table of what is known; a full one is emptied

_FIRST, _LAST = "\u4e00", "\u9fd5"  # the Chinese characters that jieba knows
_HAN = f"{_FIRST}-{_LAST}"
_LATIN = r"a-zA-Z0-9+#&._%\-"  # may stand in one block with Chinese characters; all others are separators
_FURTHER_HAN = "\u3400-\u4dbf\u9fd6-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # to rjieba, but not to jieba
_LATIN_WORDS = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
_PARTS = re.compile(f"([{_HAN}]+)")
_ALONE = re.compile(f"[{_LATIN}]+|[{_HAN}]")
_SLOW = re.compile(r"AT&T|[cC]#|[cC]\+\+")  # words of the dictionary without a Chinese character
_COUNTED_TWICE = 3  # frequency of B超
_IMPOSSIBLE = -3.14e100  # jieba's log 0
_NOWHERE = (_IMPOSSIBLE,) * 4


class WordCutter:
    """Cuts text into words as jieba does.

    rjieba has jieba's dictionary and adds up its probabilities in the same order, so the most probable path through
    the dictionary is taken from it. It differs in three ways. Its hidden Markov model, which finds words in runs of
    single characters, is rounded, so that nearly equal paths change places: ours has jieba's own numbers. It joins
    Latin letters and digits otherwise: they are cut again by jieba's rule. And it takes more characters for Chinese:
    these stand apart. The few blocks with one of the dictionary's purely Latin words are left to jieba.

    Args:
        further: characters that may be parts of words as well.
        added: further words of the dictionary, with the frequency 1; all contain one of ``further``.
    """

    def __init__(self, further: str = "", added: tuple[str, ...] = ()) -> None:
        block = f"{_LATIN}{re.escape(further)}"
        self._special = re.compile(f"([{_HAN}]*[{block}][{_HAN}{block}]*|[{_FURTHER_HAN}])")
        self._slow = re.compile(f"{_SLOW.pattern}|[{re.escape(further)}]") if further else _SLOW
        self._added = added
        self._blocks: dict[str, list[str]] = {}
        self._runs: dict[str, list[str]] = {}

    def __call__(self, text: str) -> list[str]:
        words: list[str] = []
        cut = _rjieba(self._added).cut
        for index, part in enumerate(self._special.split(text)):
            if index % 2:
                words += self._blocks.get(part) or _keep(self._blocks, part, self._block_words(part))
            elif part:
                run = ""
                for word in cut(part, False):
                    if len(word) == 1 and _FIRST <= word <= _LAST:
                        run += word
                        continue
                    if run:
                        words += self._runs.get(run) or _keep(self._runs, run, self._run_words(run))
                        run = ""
                    words.append(word)
                if run:
                    words += self._runs.get(run) or _keep(self._runs, run, self._run_words(run))
        return words

    def _block_words(self, block: str) -> list[str]:
        """Words of a block with Latin letters or digits, or of a character that is Chinese to rjieba only."""
        if len(block) == 1:
            return [block]
        if self._slow.search(block):
            return list(_jieba(self._added)(block))
        words: list[str] = []
        run = ""
        for word in _rjieba(self._added).cut(block, False):
            if _ALONE.fullmatch(word):
                run += word
                continue
            words += self._run_words(run)
            words.append(word)
            run = ""
        return words + self._run_words(run)

    def _run_words(self, run: str) -> list[str]:
        """Words that the hidden Markov model finds in characters that the dictionary left single; Latin ones stay whole.

        A run that is a word of the dictionary itself was less probable than its characters, and stays apart.
        """
        if len(run) < 2 or _rjieba(self._added).has_word(run):
            return [*run]
        words: list[str] = []
        for index, part in enumerate(_PARTS.split(run)):
            if index % 2:
                words += _viterbi(part)
            elif part:
                words += filter(None, _LATIN_WORDS.split(part))
        return words


def _keep(table: dict[str, list[str]], key: str, value: list[str]) -> list[str]:
    if len(table) >= KEPT:
        table.clear()
    table[key] = value
    return value


@lru_cache(maxsize=2)
def _rjieba(added: tuple[str, ...]) -> rjieba.Jieba:
    """rjieba with jieba's sum of all frequencies, whose rounding decides between paths that are equally probable.

    The words are never found. One stands for a line that jieba's dictionary has twice: jieba counts it twice.
    """
    cutter = rjieba.Jieba()
    cutter.add_word("\0", _COUNTED_TWICE, None)
    for word in added:
        cutter.add_word(word, 1, None)
    return cutter


@lru_cache(maxsize=2)
def _jieba(added: tuple[str, ...]) -> Any:
    """jieba's function that cuts one block.

    It is taken below ``cut``, whose pattern for blocks people patch; and without the cache file that jieba keeps in
    the shared temporary folder, which may be stale, half written or another user's.
    """
    import jieba

    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as cutter.tmp_dir:
        cutter.initialize()
    for word in added:
        cutter.add_word(word, 1)
    return cutter._Tokenizer__cut_DAG


@lru_cache(maxsize=1)
def read_markov() -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, tuple[float, ...]]]:
    """jieba's hidden Markov model, as log probabilities: P(first state), P(state | state before), P(character | state).

    The last is by character, for the states B(egin), E(nd), M(iddle) and S(ingle).
    """
    from jieba.finalseg import emit_P, start_P, trans_P

    characters = set().union(*emit_P.values())
    return start_P, trans_P, {c: tuple(emit_P[state].get(c, _IMPOSSIBLE) for state in "BEMS") for c in characters}


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
