"""EVA's tokenizer: jieba's words, cut up by longest match against the vocabulary. Exact to the original.

Self-contained: it travels with exported models, so it imports nothing of hanmo.
Source: the recorded specification of thu-coai/EVA, section 6.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import inf, log
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

_MARK = "\0"  # stands between pieces; a text that contains it is cut without the table of pieces
_SENTENCE = 200  # characters; longer texts are taken sentence by sentence
_STRETCH = re.compile("[^。\n]*[。\n]|[^。\n]+")
_SEPARATOR = re.compile(r"\r\n|.", re.DOTALL)
_HAN = re.compile("([\u4e00-\u9fd5]+)")
_LATIN = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
_IMPOSSIBLE = -3.14e100  # jieba's log 0
_NOWHERE = (_IMPOSSIBLE,) * 4


def block_pattern(further: str = "") -> re.Pattern[str]:
    """Runs of characters that jieba looks for words in; every other character is a separator."""
    return re.compile(f"([\u4e00-\u9fd5a-zA-Z0-9+#&._%\\-{re.escape(further)}]+)")


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
def read_dictionary() -> tuple[dict[str, int], int, set[str]]:
    """jieba's dictionary: frequency by word, their total, and the pairs of characters that words run across.

    The file is read here and not by a ``jieba.Tokenizer``: that keeps a cache file in the shared temporary folder,
    which may be stale, half written or another user's, and its module may have been patched by anyone.
    """
    import jieba

    frequencies: dict[str, int] = {}
    total = 0
    with jieba.Tokenizer().get_dict_file() as file:
        for line in file.read().decode("utf-8").splitlines():
            word, frequency, _ = line.split(" ")
            frequencies[word] = int(frequency)
            total += int(frequency)
    # jieba takes \r\n as one separator, so the pair belongs together too
    return frequencies, total, {"\r\n", *filter(block_pattern().fullmatch, pairs_of(frequencies))}


@lru_cache(maxsize=1)
def read_emissions() -> dict[str, tuple[float, ...]]:
    """log P(character | state) of jieba's hidden Markov model, for the states B, E, M and S."""
    from jieba.finalseg import emit_P

    characters = set().union(*emit_P.values())
    return {c: tuple(emit_P[state].get(c, _IMPOSSIBLE) for state in "BEMS") for c in characters}


def markov_words(run: str) -> list[str]:
    """The words that jieba's hidden Markov model finds in a run of single characters; Latin and digits stay whole."""
    words: list[str] = []
    for index, part in enumerate(_HAN.split(run)):
        words += _viterbi(part) if index % 2 else filter(None, _LATIN.split(part))
    return words


def _viterbi(run: str) -> list[str]:
    """Words of a run of Chinese characters: the most probable path through B(egin), E(nd), M(iddle), S(ingle).

    Sums are added in jieba's order; on a tie the state whose letter comes later wins.
    """
    from jieba.finalseg import start_P, trans_P

    table = read_emissions()
    be, bm, eb, es = trans_P["B"]["E"], trans_P["B"]["M"], trans_P["E"]["B"], trans_P["E"]["S"]
    me, mm, sb, ss = trans_P["M"]["E"], trans_P["M"]["M"], trans_P["S"]["B"], trans_P["S"]["S"]
    b, e, m, s = (
        start_P[state] + emission for state, emission in zip("BEMS", table.get(run[0], _NOWHERE), strict=True)
    )
    came_from: list[dict[str, str]] = []
    for character in run[1:]:
        at_b, at_e, at_m, at_s = table.get(character, _NOWHERE)
        b_e, b_s = e + eb + at_b, s + sb + at_b
        e_b, e_m = b + be + at_e, m + me + at_e
        m_b, m_m = b + bm + at_m, m + mm + at_m
        s_e, s_s = e + es + at_s, s + ss + at_s
        came_from.append(
            {
                "B": "S" if b_s >= b_e else "E",
                "E": "M" if e_m >= e_b else "B",
                "M": "M" if m_m >= m_b else "B",
                "S": "S" if s_s >= s_e else "E",
            }
        )
        b, e, m, s = max(b_e, b_s), max(e_b, e_m), max(m_b, m_m), max(s_e, s_s)
    words: list[str] = []
    state, end = "S" if s >= e else "E", len(run)
    for start in range(len(run) - 1, -1, -1):
        if state in "BS":
            words.append(run[start:end])
            end = start
        if start:
            state = came_from[start - 1][state]
    if end:
        words.append(run[:end])
    return words[::-1]


class WordCutter:
    """jieba's accurate mode (HMM on), exactly, with the work done once per distinct piece of text.

    A text falls apart at every place that no word of the dictionary crosses. Inside such a piece the most probable
    path does not depend on the rest of the text, so its words are looked up in a table of pieces already met. Runs
    of single characters go to jieba's hidden Markov model, and their words are kept likewise.

    One thing does depend on the rest: where two paths are equally probable, jieba's choice hangs on the rounding of
    the sum over everything to the right. A piece whose best path is ahead by less than ``MARGIN`` is therefore never
    kept; the stretch of text around it is computed in full, with jieba's own order of additions.

    Args:
        value: what a word becomes (its ids, say); called once per distinct word or separator.
        block_characters: further characters that words may be made of, beside jieba's own.
        added: words to add to jieba's dictionary, with the frequency 1.
    """

    MARGIN = 1e-6  # log probability; rounding errors stay below 2e-7 for LONGEST_PIECE and LONGEST_TEXT
    LONGEST_PIECE = 64
    LONGEST_TEXT = 1_000_000
    TABLE_SIZE = 1 << 19  # entries; a full table is emptied

    def __init__(
        self, value: Callable[[str], Sequence[Any]], block_characters: str = "", added: Sequence[str] = ()
    ) -> None:
        self._value = value
        self._block = block_pattern(block_characters)
        frequencies, total, pairs = read_dictionary()
        if added:
            frequencies, pairs = (
                frequencies | dict.fromkeys(added, 1),
                pairs | pairs_of(filter(self._block.fullmatch, added)),
            )
            total += len(added)
        self._frequencies, self._pairs = frequencies, pairs
        self._log_total = log(total)
        self._longest = max(map(len, frequencies))
        self._pieces: dict[str, tuple[str, list[Any] | None, str] | None] = {}
        self._runs: dict[str, list[Any]] = {"": []}

    def __call__(self, text: str) -> list[Any]:
        """The values of all words of ``text``, one after the other."""
        if len(text) <= _SENTENCE:
            return self._fast(text)
        values: list[Any] = []
        for stretch in _STRETCH.findall(text):
            values += self._fast(stretch)
        return values

    def _fast(self, text: str) -> list[Any]:
        """A text by the table of pieces; in full where the table must not be used."""
        if not text:
            return []
        if _MARK in text or len(text) > self.LONGEST_TEXT:
            return self._exact(text)
        pairs, pieces, runs = self._pairs, self._pieces, self._runs
        marked = [left if left + right in pairs else left + _MARK for left, right in pairwise(text)]
        marked.append(text[-1])
        values: list[Any] = []
        run = ""
        for piece in "".join(marked).split(_MARK):
            try:
                entry = pieces[piece]
            except KeyError:
                entry = self._learn(piece)
            if entry is None:
                return self._exact(text)
            head, middle, tail = entry
            if middle is None:
                run += head
                continue
            if head:
                run += head
            if run:
                values += runs[run] if run in runs else self._run(run)
            values += middle
            run = tail
        if run:
            values += runs[run] if run in runs else self._run(run)
        return values

    def _exact(self, text: str) -> list[Any]:
        """A text without the table of pieces: block by block, as jieba does it."""
        values: list[Any] = []
        for index, block in enumerate(self._block.split(text)):
            if index % 2:
                head, middle, tail = self._entry(self._route(block)[0])
                values += [*self._run(head), *(middle or ()), *self._run(tail)]
            else:
                for separator in _SEPARATOR.findall(block):
                    values += self._value(separator)
        return values

    def _learn(self, piece: str) -> tuple[str, list[Any] | None, str] | None:
        """What a piece adds: single characters before its first longer word, values, single characters at its end.

        The values are None where the piece has no longer word. None instead of all that: not to be kept.
        """
        entry: tuple[str, list[Any] | None, str] | None
        if not self._block.match(piece):
            entry = ("", list(self._value(piece)), "")
        elif len(piece) > self.LONGEST_PIECE:
            return None
        else:
            words, margin = self._route(piece)
            entry = self._entry(words) if margin > self.MARGIN else None
        if len(self._pieces) >= self.TABLE_SIZE:
            self._pieces.clear()
        self._pieces[piece] = entry
        return entry

    def _entry(self, words: list[str]) -> tuple[str, list[Any] | None, str]:
        singles = [len(word) == 1 for word in words]
        if all(singles):
            return "".join(words), None, ""
        first = singles.index(False)
        last = len(words) - singles[::-1].index(False)
        values: list[Any] = []
        run = ""
        for word in words[first:last]:
            if len(word) == 1:
                run += word
            else:
                values += self._run(run)
                values += self._value(word)
                run = ""
        return "".join(words[:first]), values, "".join(words[last:])

    def _route(self, block: str) -> tuple[list[str], float]:
        """The most probable words of a block, and by how much the closest decision on the way was made.

        Sums run from the right and the longer word wins a tie, as in jieba.
        """
        frequencies, log_total, pairs = self._frequencies, self._log_total, self._pairs
        size = len(block)
        score = [0.0] * (size + 1)
        choice = [0] * size
        margins = [inf] * size
        lonely = log(1) - log_total
        for start in range(size - 1, -1, -1):
            best, second, where = -inf, -inf, 0
            end = start + 1
            limit = min(size, start + self._longest)
            while True:
                frequency = frequencies.get(block[start:end])
                if frequency:
                    candidate = log(frequency) - log_total + score[end]
                    if candidate >= best:
                        best, second, where = candidate, best, end
                    elif candidate > second:
                        second = candidate
                if end >= limit or block[end - 1 : end + 1] not in pairs:
                    break
                end += 1
            if not where:  # no word starts here
                best, where = lonely + score[start + 1], start + 1
            score[start], choice[start], margins[start] = best, where, best - second
        words, margin, start = [], inf, 0
        while start < size:
            words.append(block[start : choice[start]])
            margin = min(margin, margins[start])
            start = choice[start]
        return words, margin

    def _run(self, run: str) -> list[Any]:
        """The values of a run of single characters: words of the hidden Markov model, unless the run is a word."""
        known = self._runs.get(run)
        if known is not None:
            return known
        words = list(run) if len(run) == 1 or self._frequencies.get(run) else markov_words(run)
        values = [value for word in words for value in self._value(word)]
        if len(run) <= self.LONGEST_PIECE:
            if len(self._runs) >= self.TABLE_SIZE:
                self._runs.clear()
                self._runs[""] = []
            self._runs[run] = values
        return values


# Full-width forms that the original folds before it cuts. Only the first table changes where words end.
_FOLD_IN_WORDS = (("…", "..."), ("＃", "#"), ("％", "%"), ("＆", "&"), ("＋", "+"), ("－", "-"), ("＿", "_"))
_FOLD = str.maketrans(
    "！？＂〝〞“”‟＄＇‘’‛（）＊，／：；＜＝＞＠［＼］＾｀｛｜｝～",
    '!?""""""$\'\'\'\'()*,/:;<=>@[\\]^`{|}~',
)
_SPELL = str.maketrans({" ": "\u2582", "\n": "\u2583"})
_LONGEST_WORD = 200  # characters; longer words become one <unk>
_SENTINELS = 187  # how many sentinels the original counts on


class EvaTokenizer(PreTrainedTokenizer):
    """EVA's tokenizer. A single text is followed by ``<sep>``; a pair is A ``<sep>`` B ``<s_0>``.

    Special tokens typed into a text are cut up like any other text and never become special.

    Args:
        vocab_file: one token a line, the line number is the id; an empty line is a token too.

    Raises:
        ValueError: the vocabulary lacks a token that the model cannot do without.
    """

    vocab_files_names = {"vocab_file": "vocab.txt"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        unk_token: str = "<unk>",
        sep_token: str = "<sep>",
        pad_token: str = "<pad>",
        bos_token: str = "<s_0>",
        eos_token: str = "<sep>",
        **kwargs: Any,
    ) -> None:
        with Path(vocab_file).open(encoding="utf-8") as lines:
            self._tokens = [line.strip() for line in lines]
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        needed = (unk_token, sep_token, pad_token, bos_token, eos_token, "<eod>")
        if missing := sorted({str(token) for token in needed} - self._ids.keys()):
            raise ValueError(f"{vocab_file}: not an EVA vocabulary, it lacks {', '.join(missing)}")
        self._longest_token = max(map(len, self._tokens))
        self._unk_id = self._ids[str(unk_token)]
        self._spelled = [token.replace("\u2582", " ").replace("\u2583", "\n") for token in self._tokens]
        self._cut: WordCutter | None = None
        kwargs["split_special_tokens"] = True
        super().__init__(
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            bos_token=bos_token,
            eos_token=eos_token,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Number of lines of the vocabulary file."""
        return len(self._tokens)

    @property
    def eod_token_id(self) -> int:
        """End of document."""
        return self._ids["<eod>"]

    @property
    def sentinel_ids(self) -> list[int]:
        """Ids of ``<s_0>``, ``<s_1>`` … that the vocabulary has, of the 187 that the original counts on."""
        names = (f"<s_{number}>" for number in range(_SENTINELS))
        return [self._ids[name] for name in names if name in self._ids]

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self._added_tokens_encoder}

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text and nothing else; empty for an empty text."""
        if self._cut is None:
            self._cut = WordCutter(self._match)
        for wide, narrow in _FOLD_IN_WORDS:
            if wide in text:
                text = text.replace(wide, narrow)
        return self._cut(text)

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        """As in transformers; a text without special tokens takes the short way."""
        if not add_special_tokens and text_pair is None and not kwargs and isinstance(text, str):
            return self.encode_plain(text)
        return super().encode(text, text_pair, add_special_tokens=add_special_tokens, **kwargs)

    def _match(self, word: str) -> list[int]:
        """Ids of a word: the longest token from the left, again and again; one step on where none fits."""
        word = word.translate(_FOLD).translate(_SPELL)
        if len(word) > _LONGEST_WORD:
            return [self._unk_id]
        ids: list[int] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest_token), start, -1):
                if (index := self._ids.get(word[start:end])) is not None:
                    ids.append(index)
                    start = end
                    break
            else:
                ids.append(self._unk_id)
                start += 1
        return ids

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._tokens[index] for index in self.encode_plain(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token.translate(_SPELL), self._unk_id)

    def _convert_id_to_token(self, index: int) -> str:
        return self._spelled[index]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Tokens joined, with spaces and newlines spelled out."""
        return "".join(tokens).replace("\u2582", " ").replace("\u2583", "\n")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        first = [*token_ids_0, self.sep_token_id]
        return first if token_ids_1 is None else [*first, *token_ids_1, self.bos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)
        first = [0] * len(token_ids_0) + [1]
        return first if token_ids_1 is None else [*first, *([0] * len(token_ids_1)), 1]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = (f"{filename_prefix}-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / name
        beside = target.with_name(f"{name}.{os.getpid()}.tmp")
        beside.write_text("".join(f"{token}\n" for token in self._tokens), encoding="utf-8", newline="\n")
        beside.replace(target)
        return (str(target),)
