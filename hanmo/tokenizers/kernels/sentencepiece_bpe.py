"""sentencepiece's BPE as a compiled kernel, with exactly its ids.

A text is normalised by the model's own character map and cut where no piece of the vocabulary spans two neighbouring
characters, since nothing can merge there; each short run is merged best score first, leftmost first. Rarer texts (rules
or user-defined symbols for several characters, very long runs, lone surrogates) are left to sentencepiece.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from hanmo.tokenizers.kernels.batch import CODES, Arrays, Kernel, codes_of, machine_code
from hanmo.tokenizers.kernels.sentencepiece_proto import NORMAL, UNKNOWN_PIECE, USER_DEFINED, Model, read_model

_BITS = 20  # of a symbol: a character or a piece
_VALUE_BITS = 23
_VALUE = (1 << _VALUE_BITS) - 1
# what a pair of symbols becomes, if not a piece
_APART = _VALUE  # nothing: no piece has the two next to each other
_ADJACENT = _VALUE - 1  # nothing yet: some longer piece has them next to each other
_RARE = _VALUE - 2  # perhaps a user-defined symbol: the text is left to sentencepiece
_NO_PIECE = _RARE  # values from here on are no pieces
_EMPTY = -1
_MIX = 0x9E3779B97F4A7C1

_LONGEST_RUN = 256  # characters; merging takes the square of it
_UNKNOWN = 0  # the symbol of all characters that no piece has
_SPACE = 1
_SPACE_SIGN = "\u2581"  # what sentencepiece writes for a space
_FALL_BACK = -1  # in place of a symbol; lower values are numbers of expansions
_STARTS, _FOLLOWS = 1, 2  # a rule for several characters may begin with this character; may have it second


class _Tables(NamedTuple):
    symbol_of: np.ndarray  # (CODES,) int32: the symbol of a normalised character; ``_FALL_BACK``; -2 - e: expansion e
    flags: np.ndarray  # (CODES,) uint8: ``_STARTS``, ``_FOLLOWS``
    expansions: np.ndarray  # int32 symbols, end to end
    ends: np.ndarray  # int64: where expansion e ends
    pairs: np.ndarray  # int64 hash table, a slot holds both symbols and what they become, or ``_EMPTY``
    ids: np.ndarray  # int32: of each symbol's piece
    unknown_id: int


def kernel(model: bytes) -> Kernel | None:
    """The kernel for a serialised sentencepiece model; None for a kind of model not supported here."""
    tables = _tables(read_model(model))
    return None if tables is None else Kernel(partial(_encode_texts, tables))


def _encode_texts(tables: _Tables, texts: Sequence[str]) -> Arrays:
    codes, ends = codes_of(texts)
    room = len(codes) + len(texts) + int(_grown(codes, tables.symbol_of, tables.ends))
    ids, counts = np.empty(room, np.int32), np.empty(len(texts), np.int64)
    used = _encode(codes, ends, tables, ids, counts)
    return ids[:used], counts


@machine_code
def _grown(codes, symbol_of, ends):
    """The number of symbols that there may be beyond that of characters."""
    grown = 0
    for code in codes:
        symbol = symbol_of[code]
        if symbol < _FALL_BACK:
            expansion = -2 - symbol
            grown += ends[expansion] - (ends[expansion - 1] if expansion else 0)
    return grown


@machine_code
def _pair(pairs, left, right):
    """The symbol that two symbols merge to."""
    key = (left << _BITS) | right
    mask = len(pairs) - 1
    slot = ((key * _MIX) >> 30) & mask
    while True:
        found = pairs[slot]
        if found >> _VALUE_BITS == key:
            return found & _VALUE
        if found == _EMPTY:
            return _APART
        slot = (slot + 1) & mask


@machine_code
def _insert(pairs, lefts, rights, values):
    """Put pairs into the table; the first value of a pair stays."""
    mask = len(pairs) - 1
    for number in range(len(lefts)):
        key = (lefts[number] << _BITS) | rights[number]
        slot = ((key * _MIX) >> 30) & mask
        while pairs[slot] != _EMPTY and pairs[slot] >> _VALUE_BITS != key:
            slot = (slot + 1) & mask
        if pairs[slot] == _EMPTY:
            pairs[slot] = (key << _VALUE_BITS) | values[number]


@machine_code
def _encode(codes, ends, tables, ids, counts):
    """Write the concatenated ids into ``ids`` and their numbers into ``counts``, -1 for a text that is left."""
    symbol_of, flags, expansions, expansion_ends, pairs, ids_of, unknown_id = tables
    used = 0
    start = 0
    values = np.empty(_LONGEST_RUN, np.int64)
    symbols = np.empty(_LONGEST_RUN, np.int64)
    for text in range(len(ends)):
        end = ends[text]
        # ids never outnumber symbols, so both share the array
        size = _normalise(codes[start:end], symbol_of, flags, expansions, expansion_ends, ids[used:])
        start = end
        count = _merge(ids[used:], size, pairs, ids_of, unknown_id, symbols, values) if size >= 0 else -1
        counts[text] = count
        used += max(count, 0)
    return used


@machine_code
def _normalise(codes, symbol_of, flags, expansions, ends, out):
    """Symbols of a text with one space before it, none after it and single ones in it; their number, or -1."""
    out[0] = _SPACE
    size = 1
    after_space = True
    may_start = False
    for code in codes:
        flag = flags[code]
        if flag:
            if may_start and flag & _FOLLOWS:
                return -1
            may_start = flag & _STARTS != 0
        else:
            may_start = False
        symbol = symbol_of[code]
        if symbol >= 0:
            is_space = symbol == _SPACE
            if not (is_space and after_space):
                out[size] = symbol
                size += 1
            after_space = is_space
        elif symbol == _FALL_BACK:
            return -1
        else:
            expansion = -2 - symbol
            first = ends[expansion - 1] if expansion else 0
            last = ends[expansion]
            while after_space and first < last and expansions[first] == _SPACE:
                first += 1
            for place in range(first, last):
                out[size] = expansions[place]
                size += 1
            if first < last:
                after_space = expansions[last - 1] == _SPACE
    while size and out[size - 1] == _SPACE:
        size -= 1
    return size


@machine_code
def _merge(out, size, pairs, ids_of, unknown_id, symbols, values):
    """Ids in place of symbols, in ``out``; their number, or -1."""
    count = 0
    place = 0
    after_unknown = False
    while place < size:
        # a run: up to where the next two characters are apart in every piece
        left = np.int64(out[place])
        length = 0
        symbols[0] = left
        place += 1
        while place < size:
            right = np.int64(out[place])
            value = _pair(pairs, left, right)
            if value == _APART:
                break
            if value == _RARE or length == _LONGEST_RUN - 2:
                return -1
            values[length] = value
            length += 1
            symbols[length] = right
            left = right
            place += 1
        while length:
            best = 0
            for number in range(1, length):
                if values[number] < values[best]:
                    best = number
            merged = values[best]
            if merged >= _NO_PIECE:
                break
            symbols[best] = merged
            length -= 1
            for number in range(best + 1, length + 1):
                symbols[number] = symbols[number + 1]
                values[number - 1] = values[number]
            if best:
                values[best - 1] = _pair(pairs, symbols[best - 1], merged)
            if best < length:
                values[best] = _pair(pairs, merged, symbols[best + 1])
        for number in range(length + 1):
            found = ids_of[symbols[number]]
            if found != unknown_id or not after_unknown:  # adjacent unknown pieces become one
                out[count] = found
                count += 1
            after_unknown = found == unknown_id
    return count


def _tables(model: Model) -> _Tables | None:
    # Symbols: characters first, then pieces from the best score down, so that the lower number merges first.
    normal = sorted((-piece.score, piece.piece) for piece in model.pieces if piece.type == NORMAL)
    defined = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    characters = {character for text in (*defined, *(text for _, text in normal)) for character in text}
    number: dict[str, int] = {"": _UNKNOWN, _SPACE_SIGN: _SPACE}
    for text in (*sorted(characters), *(text for _, text in normal)):
        number.setdefault(text, len(number))
    if not _known(model, normal, defined) or len(number) >= 1 << _BITS:
        return None
    unknown_id = next(index for index, piece in enumerate(model.pieces) if piece.type == UNKNOWN_PIECE)
    ids = np.full(len(number), unknown_id, np.int32)
    for index, piece in enumerate(model.pieces):
        if piece.type == NORMAL or (piece.type == USER_DEFINED and len(piece.piece) == 1):
            ids[number[piece.piece]] = index
    symbol_of, flags, expansions, ends = _characters(model, number, defined)
    return _Tables(symbol_of, flags, expansions, ends, _pair_table(normal, number, defined), ids, unknown_id)


def _known(model: Model, normal: list[tuple[float, str]], defined: list[str]) -> bool:
    scores = [score for score, text in normal if len(text) > 1]
    begun = {character for text in defined if len(text) > 1 for character in text[:2]}
    return (
        model.is_bpe
        and model.usual_spaces
        and not model.other_pieces
        and len(set(scores)) == len(scores)  # numbers stand for scores
        and not any(ord(character) in model.rules for character in begun)  # what ``_RARE`` looks for
    )


def _pair_table(normal: list[tuple[float, str]], number: dict[str, int], defined: list[str]) -> np.ndarray:
    """All pairs that become a piece, then those inside pieces; user-defined symbols never merge."""
    frozen = set(defined)
    rare = {(text[0], text[1]): _RARE for text in defined if len(text) > 1}
    joined, adjacent = {}, {}
    for _, text in normal:
        for place in range(1, len(text)):
            left, right = text[:place], text[place:]
            if left in number and right in number and left not in frozen and right not in frozen:
                joined[left, right] = number[text]
            adjacent[text[place - 1], text[place]] = _ADJACENT
    found = adjacent | joined | rare
    pairs = np.full(1 << (3 * len(found)).bit_length(), _EMPTY, np.int64)
    lefts = np.array([number[left] for left, _ in found], np.int64)
    rights = np.array([number[right] for _, right in found], np.int64)
    _insert(pairs, lefts, rights, np.array(list(found.values()), np.int64))
    return pairs


def _characters(
    model: Model, number: dict[str, int], defined: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The symbols that every character becomes, and the characters that may be part of a rule for several."""
    symbol_of = np.full(CODES, _UNKNOWN, np.int32)
    flags = np.zeros(CODES, np.uint8)
    for text, symbol in number.items():
        if len(text) == 1:
            symbol_of[ord(text)] = symbol
    symbol_of[ord(" ")] = _SPACE
    expansions: list[int] = []
    ends: list[int] = []

    def spelled(text: str) -> list[int]:
        return [_SPACE if character == " " else number.get(character, _UNKNOWN) for character in text]

    for code, target in model.rules.items():
        if chr(code) in defined:
            continue
        if _SPACE_SIGN in target:
            symbol_of[code] = _FALL_BACK
        elif len(target) == 1:
            symbol_of[code] = spelled(target)[0]
        else:
            symbol_of[code] = -2 - len(ends)
            expansions += spelled(target)
            ends.append(len(expansions))
    flags[model.starts] |= _STARTS
    flags[model.follows] |= _FOLLOWS
    symbol_of[ord(_SPACE_SIGN)] = _FALL_BACK  # in a text this sign is not a space
    symbol_of[0xD800:0xE000] = _FALL_BACK  # lone surrogates are not text
    return symbol_of, flags, np.array(expansions or [0], np.int32), np.array(ends or [0], np.int64)
