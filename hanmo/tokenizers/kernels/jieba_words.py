"""jieba's words, each cut up by longest match, as a compiled kernel, with exactly the ids of ``EvaTokenizer``.

Dictionary and vocabulary are tries whose edges lie in a hash table. Blocks, the most probable path through the
dictionary and the hidden Markov model are jieba's. Sums are added in its order: rounding decides between equal paths.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import log
from typing import NamedTuple

import numpy as np

from hanmo.tokenizers.jieba_exact import read_frequencies, read_markov
from hanmo.tokenizers.kernels.batch import CODES, Arrays, Kernel, codes_of, machine_code

_BITS = 21  # of a code point, and of a node's number
_LOW = (1 << _BITS) - 1
_ROOT, _NOWHERE, _EMPTY = 0, -1, -1  # nodes, and an empty slot of a hash table
_MIX = 0x9E3779B97F4A7C1

_SEPARATOR, _SIGN, _LETTER, _DIGIT, _HAN = range(5)  # kinds of characters; all but separators stand in blocks
_FIRST_HAN, _LAST_HAN = 0x4E00, 0x9FD5  # the characters that jieba treats as Chinese
_POINT, _PERCENT = ord("."), ord("%")
_NO_WORD, _NO_TOKEN = -np.inf, -1
_IMPOSSIBLE = -3.14e100  # jieba's value for log 0
_B, _E, _M, _S = range(4)  # states of the model: a character begins a word, ends it, is inside, or is one
_S_TO_B, _M_TO_E, _M_TO_M, _S_TO_S = 1, 2, 4, 8  # set where the best path comes from there, else from the other state


class _Jieba(NamedTuple):
    """jieba's dictionary and model in arrays; all probabilities are logarithms in float64."""

    kinds: np.ndarray  # (CODES,) uint8
    edges: np.ndarray  # int64 hash table: a slot holds a node, the next character and the following node
    weights: np.ndarray  # by node: probability of the word that ends there, or ``_NO_WORD``
    unknown: float  # probability of any other character
    first: np.ndarray  # (4,)
    then: np.ndarray  # (4, 4)
    emissions: np.ndarray  # (Han characters, 4)


class _Vocabulary(NamedTuple):
    edges: np.ndarray  # as in ``_Jieba``
    ids: np.ndarray  # int64, by node: of the token that ends there, or ``_NO_TOKEN``
    unknown_id: int
    longest_word: int  # characters; a longer word is unknown as a whole


def kernel(
    tokens: tuple[str, ...], unknown_id: int, longest_word: int, folds: tuple[tuple[str, str], ...]
) -> Kernel | None:
    """The kernel for a vocabulary; ``folds``: characters, and the text that replaces each before the text is cut."""
    if sum(map(len, tokens)) >= _LOW:
        return None
    edges, nodes, size = _trie(tokens)
    token_ids = np.full(size, _NO_TOKEN, np.int64)
    token_ids[nodes] = np.arange(len(tokens))  # the last of equal lines, as in a table
    vocabulary = _Vocabulary(edges, token_ids, unknown_id, longest_word)
    longer = [(one, others) for one, others in folds if len(others) > 1]
    folded = np.arange(CODES, dtype=np.uint32)
    for one, other in folds:
        if len(other) == 1:
            folded[ord(one)] = ord(other)

    def encode(texts: Sequence[str]) -> Arrays:
        for one, others in longer:
            texts = [text.replace(one, others) for text in texts]
        codes, ends = codes_of(texts)
        ids, counts = np.empty(len(codes), np.int32), np.empty(len(texts), np.int64)
        used = _encode(folded[codes], ends, _jieba(), vocabulary, ids, counts)
        return ids[:used], counts

    return Kernel(encode)


@machine_code
def _encode(codes, ends, jieba, vocabulary, ids, counts):
    """Write the concatenated ids into ``ids`` and their numbers into ``counts``."""
    starts = np.empty(len(codes), np.bool_)
    best = np.empty(len(codes) + 1, np.float64)
    word_ends = np.empty(len(codes), np.int32)
    used = start = 0
    for text in range(len(ends)):
        end = ends[text]
        _cut(codes[start:end], jieba, best, word_ends, starts[start:end])
        count = _match(codes[start:end], starts[start:end], vocabulary, ids[used:])
        counts[text] = count
        used += count
        start = end
    return used


@machine_code
def _step(edges, node, code):
    """The node that a character leads to, or ``_NOWHERE``."""
    key = (np.int64(node) << _BITS) | np.int64(code)
    mask = len(edges) - 1
    slot = ((key * _MIX) >> 30) & mask
    while True:
        edge = edges[slot]
        if edge >> _BITS == key:
            return edge & _LOW
        if edge == _EMPTY:
            return np.int64(_NOWHERE)
        slot = (slot + 1) & mask


@machine_code
def _grow(codes, ends, edges, nodes):
    """Put strings into a trie and the node of each one's end into ``nodes``; returns the number of nodes."""
    mask = len(edges) - 1
    size = 1
    start = 0
    for number in range(len(ends)):
        node = np.int64(_ROOT)
        for place in range(start, ends[number]):
            following = _step(edges, node, codes[place])
            if following == _NOWHERE:
                key = (node << _BITS) | np.int64(codes[place])
                slot = ((key * _MIX) >> 30) & mask
                while edges[slot] != _EMPTY:
                    slot = (slot + 1) & mask
                following = np.int64(size)
                edges[slot] = (key << _BITS) | following
                size += 1
            node = following
        nodes[number] = node
        start = ends[number]
    return size


@machine_code
def _match(codes, starts, vocabulary, ids):
    """Ids of words, each cut up by longest match; their number. starts: where a word begins."""
    edges, tokens, unknown_id, longest_word = vocabulary
    count = start = 0
    while start < len(codes):
        end = start + 1
        while end < len(codes) and not starts[end]:
            end += 1
        if end - start > longest_word:
            ids[count] = unknown_id
            count += 1
            start = end
        while start < end:
            node = np.int64(_ROOT)
            found = unknown_id
            after = start + 1
            for place in range(start, end):
                node = _step(edges, node, codes[place])
                if node == _NOWHERE:
                    break
                if tokens[node] != _NO_TOKEN:
                    found = tokens[node]
                    after = place + 1
            ids[count] = found
            count += 1
            start = after
    return count


@machine_code
def _cut(codes, jieba, best, word_ends, starts):
    """Write the beginnings of jieba's words into ``starts``; each separator is a word."""
    kinds = jieba.kinds
    start = 0
    while start < len(codes):
        starts[start] = True
        if kinds[codes[start]] == _SEPARATOR:  # jieba keeps "\r\n" together, but no token begins with white space
            start += 1
            continue
        end = start + 1
        while end < len(codes) and kinds[codes[end]] != _SEPARATOR:
            end += 1
        _cut_block(codes[start:end], jieba, best, word_ends, starts[start:end])
        start = end


@machine_code
def _cut_block(codes, jieba, best, word_ends, starts):
    _find_path(codes, jieba, best, word_ends)
    starts[:] = False
    place = 0
    run = 0  # where the remaining single characters begin
    while place < len(codes):
        starts[place] = True
        end = word_ends[place]
        if end > place + 1:
            _cut_run(codes[run:place], jieba, starts[run:place])
            run = end
        place = end
    _cut_run(codes[run:], jieba, starts[run:])


@machine_code
def _find_path(codes, jieba, best, word_ends):
    """Write the end of the most probable word from each place into ``word_ends``; the longer one wins a tie."""
    best[len(codes)] = 0.0
    for start in range(len(codes) - 1, -1, -1):
        most = _NO_WORD
        node = np.int64(_ROOT)
        for place in range(start, len(codes)):
            node = _step(jieba.edges, node, codes[place])
            if node == _NOWHERE:
                break
            weight = jieba.weights[node]
            if weight != _NO_WORD and weight + best[place + 1] >= most:
                most = weight + best[place + 1]
                word_ends[start] = place + 1
        if most == _NO_WORD:
            most = jieba.unknown + best[start + 1]
            word_ends[start] = start + 1
        best[start] = most


@machine_code
def _cut_run(codes, jieba, starts):
    """Join single characters to words by the model or jieba's rule for Latin letters."""
    if len(codes) < 2:
        return
    node = np.int64(_ROOT)
    for code in codes:
        node = _step(jieba.edges, node, code)
        if node == _NOWHERE:
            break
    if node != _NOWHERE and jieba.weights[node] != _NO_WORD:
        return  # a word of the dictionary that was less probable than its characters
    kinds = jieba.kinds
    start = 0
    while start < len(codes):
        is_han = kinds[codes[start]] == _HAN
        end = start + 1
        while end < len(codes) and (kinds[codes[end]] == _HAN) == is_han:
            end += 1
        if is_han:
            _cut_han(codes[start:end], jieba, starts[start:end])
        else:
            _cut_latin(codes[start:end], kinds, starts[start:end])
        start = end


@machine_code
def _cut_latin(codes, kinds, starts):
    """Letters and digits with decimals and a percent sign are words, as is everything between two of them."""
    starts[:] = False
    size = len(codes)
    place = 0
    while place < size:
        starts[place] = True
        if kinds[codes[place]] == _SIGN:
            while place < size and kinds[codes[place]] == _SIGN:
                place += 1
            continue
        while place < size and kinds[codes[place]] != _SIGN:
            place += 1
        if place + 1 < size and codes[place] == _POINT and kinds[codes[place + 1]] == _DIGIT:
            place += 1
            while place < size and kinds[codes[place]] == _DIGIT:
                place += 1
        if place < size and codes[place] == _PERCENT:
            place += 1


@machine_code
def _cut_han(codes, jieba, starts):
    """The most probable path through the states; on a tie the state whose letter comes later wins."""
    first, then, emissions = jieba.first, jieba.then, jieba.emissions
    at = emissions[codes[0] - _FIRST_HAN]
    b, e, m, s = first[_B] + at[_B], first[_E] + at[_E], first[_M] + at[_M], first[_S] + at[_S]
    origins = np.empty(len(codes), np.uint8)
    for place in range(1, len(codes)):
        at = emissions[codes[place] - _FIRST_HAN]
        b_e, b_s = e + then[_E, _B] + at[_B], s + then[_S, _B] + at[_B]
        e_b, e_m = b + then[_B, _E] + at[_E], m + then[_M, _E] + at[_E]
        m_b, m_m = b + then[_B, _M] + at[_M], m + then[_M, _M] + at[_M]
        s_e, s_s = e + then[_E, _S] + at[_S], s + then[_S, _S] + at[_S]
        origins[place] = (
            (b_s >= b_e) * _S_TO_B | (e_m >= e_b) * _M_TO_E | (m_m >= m_b) * _M_TO_M | (s_s >= s_e) * _S_TO_S
        )
        b, e, m, s = max(b_s, b_e), max(e_m, e_b), max(m_m, m_b), max(s_s, s_e)
    starts[:] = False
    state = _S if s >= e else _E
    for place in range(len(codes) - 1, -1, -1):
        origin = origins[place]
        if state == _E:
            state = _M if origin & _M_TO_E else _B
        elif state == _M:
            state = _M if origin & _M_TO_M else _B
        else:
            starts[place] = True
            state = _S if origin & (_S_TO_B if state == _B else _S_TO_S) else _E
    starts[0] = True


def _trie(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Edges, the node where each string ends, the number of nodes."""
    codes, ends = codes_of(strings)
    edges = np.full(1 << (2 * len(codes)).bit_length(), _EMPTY, np.int64)
    nodes = np.empty(len(strings), np.int64)
    return edges, nodes, int(_grow(codes, ends, edges, nodes))


@lru_cache(maxsize=1)
def _jieba() -> _Jieba:
    frequencies, total = read_frequencies()
    edges, nodes, size = _trie(list(frequencies))
    weights = np.full(size, _NO_WORD)
    log_total = log(total)
    weights[nodes] = [log(int(frequency)) - log_total for frequency in frequencies.values()]
    first, then, of_characters = read_markov()
    emissions = np.full((_LAST_HAN - _FIRST_HAN + 1, 4), _IMPOSSIBLE)
    for character, probabilities in of_characters.items():
        emissions[ord(character) - _FIRST_HAN] = probabilities
    kinds = np.full(CODES, _SEPARATOR, np.uint8)
    kinds[[ord(sign) for sign in "+#&._%-"]] = _SIGN
    for kind, start, end in ((_DIGIT, "0", "9"), (_LETTER, "a", "z"), (_LETTER, "A", "Z")):
        kinds[ord(start) : ord(end) + 1] = kind
    kinds[_FIRST_HAN : _LAST_HAN + 1] = _HAN
    return _Jieba(
        kinds,
        edges,
        weights,
        log(1) - log_total,
        np.array([first[state] for state in "BEMS"]),
        np.array([[then[state].get(after, _IMPOSSIBLE) for after in "BEMS"] for state in "BEMS"]),
        emissions,
    )
