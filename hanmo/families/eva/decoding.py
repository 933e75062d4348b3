"""EVA's score rules: penalties and bans that look at the whole conversation.

Source: the recorded specification of thu-coai/EVA, section 7.1.
"""

from __future__ import annotations

import ast
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hanmo.errors import RecordError

logger = logging.getLogger(__name__)

BANNED = -10000.0
NEVER = -50000.0  # <unk>
# Stands for <sep> where text is compared character by character: <sep> counts as one character.
SEPARATOR = "\ufdd0"
PAUSES = ("，", ",", "。")
AFTER_PAUSE = ("但", "不过")  # never said after a pause


class Vocabulary:
    """What the rules know of a vocabulary: the text of each token and its antonyms.

    Args:
        tokens: text of each id, spaces and newlines spelled out.
        ids: id by vocabulary entry, as the vocabulary file has it.
        separator: the token that ends an utterance.
        antonyms: pairs of words, which exclude each other both ways. A word that is no token is left out with a
            note; the original stops there.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        ids: Mapping[str, int],
        separator: str = "<sep>",
        unknown: str = "<unk>",
        antonyms: Iterable[tuple[str, str]] = (),
    ):
        self.stop_id, self.unknown_id = ids[separator], ids[unknown]
        self.texts = list(tokens)
        self.texts[self.stop_id] = SEPARATOR
        self.ids = {**ids, SEPARATOR: self.stop_id}
        self.after_pause = frozenset(ids[word] for word in AFTER_PAUSE if word in ids)
        self.antonyms = self._opposites(antonyms, ids)

    @classmethod
    def of(cls, tokenizer: Any, antonyms: str | Path | None = None) -> Vocabulary:
        """The rule book of a tokenizer, with the antonyms of a file if there is one."""
        ids = {token: index for token, index in tokenizer.get_vocab().items() if index < tokenizer.vocab_size}
        tokens = tokenizer.convert_ids_to_tokens(list(range(tokenizer.vocab_size)))
        pairs = [] if antonyms is None else read_antonyms(antonyms)
        return cls(tokens, ids, tokenizer.sep_token, tokenizer.unk_token, pairs)

    def _opposites(self, pairs: Iterable[tuple[str, str]], ids: Mapping[str, int]) -> dict[int, frozenset[int]]:
        found: dict[int, set[int]] = defaultdict(set)
        missing: set[str] = set()
        for pair in pairs:
            missing.update(word for word in pair if word not in ids)
            if all(word in ids for word in pair):
                one, other = (ids[word] for word in pair)
                found[one].add(other)
                found[other].add(one)
        if missing:
            some = ", ".join(sorted(missing)[:5])
            logger.warning("%d words of the antonym rules are not in the vocabulary: %s", len(missing), some)
        return {index: frozenset(others) for index, others in found.items()}


def read_antonyms(path: str | Path) -> list[tuple[str, str]]:
    """Pairs of words that exclude each other, from a file with one Python tuple of two strings a line.

    Raises:
        RecordError: a line is not such a tuple.
    """
    path = Path(path)
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            one, other = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError):
            one = other = None
        if not isinstance(one, str) or not isinstance(other, str):
            raise RecordError(path, number, f"expected two quoted words, like ('好', '坏'), found {line.strip()!r}")
        pairs.append((one, other))
    return pairs


class EvaLogitsProcessor:
    """The five rules, applied in this order to each row's scores (R, V):

    1. repetition penalty on every id said before (the separator excepted);
    2. no separator before ``min_new_tokens``;
    3. no n-gram of characters twice; no 但 or 不过 after a pause;
    4. no antonym of a word of the utterance that is being said, or of what came before it up to a separator;
    5. never ``<unk>``, nor ``banned_ids``.

    ``published``: the antonyms of all rows are banned in every row, as the original does by mistake.
    Implements families.base.Rules. What depends on the context alone is computed once for each context.

    Args:
        settings: generation.settings.Settings.
        contexts: full_ids ids of each conversation.
    """

    def __init__(self, book: Vocabulary, settings: Any, contexts: Sequence[Sequence[int]]):
        self._book = book
        self._settings = settings
        self._contexts = [ConversationState(book, settings.no_repeat_ngram_size, ids) for ids in contexts]

    def __call__(self, generated: Sequence[Sequence[int]], sources: Sequence[int], scores_RV: Tensor) -> Tensor:
        settings, book = self._settings, self._book
        contexts = [self._contexts[source] for source in sources]
        if settings.repetition_penalty != 1:
            said = [context.ids.union(ids) - {book.stop_id} for context, ids in zip(contexts, generated, strict=True)]
            _rescore(scores_RV, said, _penalty(settings.repetition_penalty))
        bans = [context.bans(ids) for context, ids in zip(contexts, generated, strict=True)]
        for ids, row_bans in zip(generated, bans, strict=True):
            if len(ids) < settings.min_new_tokens:
                row_bans.add(book.stop_id)
        if book.antonyms and settings.rule_files:
            opposites = [context.opposites(ids) for context, ids in zip(contexts, generated, strict=True)]
            if settings.published:
                opposites = [set().union(*opposites)] * len(bans)
            bans = [one | other for one, other in zip(bans, opposites, strict=True)]
        _rescore(scores_RV, bans, _constant(BANNED))
        scores_RV[:, [book.unknown_id, *settings.banned_ids]] = NEVER
        return scores_RV


class ConversationState:
    """A conversation as the rules see it; the generated part is given anew with every call."""

    def __init__(self, book: Vocabulary, size: int, ids: Sequence[int]):
        self.ids = frozenset(ids)
        self._book = book
        self._size = size
        self._text = "".join(map(book.texts.__getitem__, ids))
        # An n-gram that is a token by itself is banned for good.
        self._whole = self._tokens_in(self._text)
        last = len(ids) - list(ids)[::-1].index(book.stop_id) if book.stop_id in ids else 0
        self._open_opposites = self._opposites_of(ids[last:])

    def bans(self, generated: Sequence[int]) -> set[int]:
        """Ids that would complete an n-gram of characters that has occurred, by rule 3."""
        size, ids_of = self._size, self._book.ids
        if not size:
            return set()
        new = "".join(map(self._book.texts.__getitem__, generated))
        text = self._text + new
        banned = self._whole | self._tokens_in(text[max(0, len(self._text) - size + 1) :])
        for known in range(1, min(size, len(text) + 1)):
            opening = text[-known:]
            start = text.find(opening)
            while 0 <= start <= len(text) - size:
                rest = text[start + known : start + size]
                if rest in ids_of:
                    banned.add(ids_of[rest])
                start = text.find(opening, start + 1)
        if text.endswith(PAUSES):
            banned |= self._book.after_pause
        return banned

    def opposites(self, generated: Sequence[int]) -> set[int]:
        """Antonyms of the tokens since the last separator, by rule 4."""
        if self._book.stop_id in generated:
            last = len(generated) - list(generated)[::-1].index(self._book.stop_id)
            return self._opposites_of(generated[last:])
        return self._open_opposites | self._opposites_of(generated)

    def _tokens_in(self, text: str) -> set[int]:
        """Ids of the n-grams of a text that are tokens."""
        size, ids_of = self._size, self._book.ids
        if not size:
            return set()
        grams = (text[start : start + size] for start in range(len(text) - size + 1))
        return {ids_of[gram] for gram in grams if gram in ids_of}

    def _opposites_of(self, ids: Iterable[int]) -> set[int]:
        antonyms = self._book.antonyms
        return set().union(*(antonyms[index] for index in ids if index in antonyms))


def _rescore(scores_RV: Tensor, ids: Sequence[Collection[int]], change: Callable[[Tensor], Tensor]) -> None:
    """Change, in place, the scores of each row's ids."""
    columns = np.fromiter(chain.from_iterable(ids), np.int64)
    if len(columns):
        rows = np.repeat(np.arange(len(ids)), [len(row_ids) for row_ids in ids])
        place = tuple(torch.from_numpy(axis).to(scores_RV.device) for axis in (rows, columns))
        scores_RV[place] = change(scores_RV[place])


def _penalty(penalty: float) -> Callable[[Tensor], Tensor]:
    return lambda scores: torch.where(scores < 0, scores * penalty, scores / penalty)


def _constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda scores: torch.full_like(scores, value)
