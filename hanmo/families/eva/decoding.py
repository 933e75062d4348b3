"""EVA's score rules, which depend on the whole conversation: the recorded specification of thu-coai/EVA, section 7.1."""

from __future__ import annotations

import ast
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hanmo.errors import RecordError
from hanmo.families.decoding import penalise, suppress

logger = logging.getLogger(__name__)

SUPPRESSED = -10000.0  # the score of ids that rules 2 to 4 suppress
SUPPRESSED_ALWAYS = -50000.0  # of <unk> and settings.suppressed_ids
# Stands for <sep>, which counts as one character, in the comparison of texts.
SEPARATOR = "\ufdd0"
PAUSES = ("，", ",", "。")
AFTER_PAUSE = ("但", "不过")  # suppressed after a pause


class Vocabulary:
    """The text and the antonyms of each token of a tokenizer.

    Antonyms exclude each other both ways; a word that is not a token is skipped with a warning (the original fails).
    """

    def __init__(self, tokenizer: Any, antonyms: Iterable[tuple[str, str]] = ()):
        ids = {token: index for token, index in tokenizer.get_vocab().items() if index < tokenizer.vocab_size}
        self.stop_id, self.unknown_id = ids[tokenizer.sep_token], ids[tokenizer.unk_token]
        self.texts = tokenizer.convert_ids_to_tokens(list(range(tokenizer.vocab_size)))
        self.texts[self.stop_id] = SEPARATOR
        self.ids = {**ids, SEPARATOR: self.stop_id}
        self.after_pause = frozenset(ids[word] for word in AFTER_PAUSE if word in ids)
        self.antonyms = self._antonyms(antonyms, ids)

    def _antonyms(self, pairs: Iterable[tuple[str, str]], ids: Mapping[str, int]) -> dict[int, frozenset[int]]:
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
    """Pairs of antonyms from a file with a Python tuple of two strings on each line; RecordError for any other line."""
    path = Path(path)
    pairs = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            one, other = ast.literal_eval(line.decode("utf-8-sig").strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # of bytes, of nesting
            one = other = None
        if not isinstance(one, str) or not isinstance(other, str):
            found = line.decode("utf-8", "replace").strip()[:80]
            raise RecordError(path, number, f"expected two quoted words, like ('好', '坏'), found {found!r}")
        pairs.append((one, other))
    return pairs


class EvaLogitsProcessor:
    """The five rules, applied in this order to each row's scores (R, V); ``contexts`` are the conversations' full_ids.

    1. repetition penalty on every id of the conversation so far (except the separator);
    2. no separator before ``min_new_tokens``;
    3. no n-gram of characters twice; no 但 or 不过 after a pause;
    4. no antonym of a token since the last separator; ``published``: of any row, as the original does by mistake;
    5. never ``<unk>`` nor ``settings.suppressed_ids``.
    """

    def __init__(self, vocabulary: Vocabulary, settings: Any, contexts: Sequence[Sequence[int]]):
        self._vocabulary = vocabulary
        self._settings = settings
        self._contexts = [ConversationState(vocabulary, settings.no_repeat_ngram_size, ids) for ids in contexts]

    def __call__(self, generated: Sequence[Sequence[int]], sources: Sequence[int], scores_RV: Tensor) -> Tensor:
        settings, vocabulary = self._settings, self._vocabulary
        contexts = [self._contexts[source] for source in sources]
        if settings.repetition_penalty != 1:
            seen = [one.ids.union(ids) - {vocabulary.stop_id} for one, ids in zip(contexts, generated, strict=True)]
            penalise(scores_RV, seen, settings.repetition_penalty)
        suppressed = [context.repetitions(ids) for context, ids in zip(contexts, generated, strict=True)]
        for ids, row_ids in zip(generated, suppressed, strict=True):
            if len(ids) < settings.min_new_tokens:
                row_ids.add(vocabulary.stop_id)
        if vocabulary.antonyms and settings.rule_files:
            antonyms = [context.antonyms(ids) for context, ids in zip(contexts, generated, strict=True)]
            if settings.published:
                antonyms = [set().union(*antonyms)] * len(suppressed)
            suppressed = [one | other for one, other in zip(suppressed, antonyms, strict=True)]
        suppress(scores_RV, suppressed, SUPPRESSED)
        scores_RV[:, [vocabulary.unknown_id, *settings.suppressed_ids]] = SUPPRESSED_ALWAYS
        return scores_RV


class ConversationState:
    """The rules' state for one context, computed once; the methods take the ids generated so far."""

    def __init__(self, vocabulary: Vocabulary, size: int, ids: Sequence[int]):
        self.ids = frozenset(ids)
        self._vocabulary = vocabulary
        self._size = size
        self._text = "".join(map(vocabulary.texts.__getitem__, ids))
        # N-grams of the context that are single tokens are always suppressed.
        self._whole = self._tokens_in(self._text)
        self._open_antonyms = self._antonyms_of(self._since_separator(ids))

    def repetitions(self, generated: Sequence[int]) -> set[int]:
        """Ids that would complete an n-gram of characters that has occurred, and those after a pause: rule 3."""
        size, ids_of = self._size, self._vocabulary.ids
        if not size:
            return set()
        new = "".join(map(self._vocabulary.texts.__getitem__, generated))
        text = self._text + new
        found = self._whole | self._tokens_in(text[max(0, len(self._text) - size + 1) :])
        for known in range(1, min(size, len(text) + 1)):
            opening = text[-known:]
            start = text.find(opening)
            while 0 <= start <= len(text) - size:
                rest = text[start + known : start + size]
                if rest in ids_of:
                    found.add(ids_of[rest])
                start = text.find(opening, start + 1)
        if text.endswith(PAUSES):
            found |= self._vocabulary.after_pause
        return found

    def antonyms(self, generated: Sequence[int]) -> set[int]:
        """Antonyms of the tokens since the last separator: rule 4."""
        found = self._antonyms_of(self._since_separator(generated))
        return found if self._vocabulary.stop_id in generated else found | self._open_antonyms

    def _since_separator(self, ids: Sequence[int]) -> Sequence[int]:
        stop_id = self._vocabulary.stop_id
        return ids[len(ids) - list(ids)[::-1].index(stop_id) :] if stop_id in ids else ids

    def _tokens_in(self, text: str) -> set[int]:
        """Ids of the n-grams of a text that are tokens."""
        size, ids_of = self._size, self._vocabulary.ids
        if not size:
            return set()
        grams = (text[start : start + size] for start in range(len(text) - size + 1))
        return {ids_of[gram] for gram in grams if gram in ids_of}

    def _antonyms_of(self, ids: Iterable[int]) -> set[int]:
        antonyms = self._vocabulary.antonyms
        return set().union(*(antonyms[index] for index in ids if index in antonyms))
