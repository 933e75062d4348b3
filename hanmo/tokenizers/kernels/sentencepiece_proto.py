"""A sentencepiece model read from its file: pieces, settings, and the rules of its character map.

sentencepiece itself tells neither the settings nor the rules. The format is that of its sentencepiece_model.proto;
the map is a double-array trie over UTF-8 (darts-clone) that leads to strings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NORMAL, UNKNOWN_PIECE, CONTROL, USER_DEFINED = 1, 2, 3, 4
_BPE = 2


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: int


@dataclass(frozen=True)
class Model:
    """rules: what the character map makes of a code point on its own. starts, follows: code points that begin a rule
    for several characters, or are the second of one.

    usual_spaces: a space is put before the text, runs become one, and U+2581 stands for it. other_pieces: there are
    bytes or unused pieces.
    """

    pieces: list[Piece]
    rules: dict[int, str]
    starts: np.ndarray
    follows: np.ndarray
    is_bpe: bool
    usual_spaces: bool
    other_pieces: bool


def read_model(serialised: bytes) -> Model:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(serialised):
        if field == 1:
            said = dict(_fields(_bytes(value)))
            score = struct.unpack("<f", _bytes(said[2]))[0] if 2 in said else 0.0
            pieces.append(Piece(_bytes(said.get(1, b"")).decode("utf-8"), score, int(said.get(3, NORMAL))))
        elif field == 2:
            trainer = dict(_fields(_bytes(value)))
        elif field == 3:
            normalizer = dict(_fields(_bytes(value)))
    spaces = all(normalizer.get(field, 1) for field in (3, 4, 5)) and not trainer.get(24, 0)
    known = {NORMAL, UNKNOWN_PIECE, CONTROL, USER_DEFINED}
    return Model(
        pieces,
        *_rules(_bytes(normalizer.get(2, b""))),
        trainer.get(3, 1) == _BPE,
        bool(spaces),
        any(piece.type not in known for piece in pieces),
    )


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer message."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
        yield tag >> 3, message[place : place + size]
        place += size


def _characters_on(units: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The trie's nodes one UTF-8 character further: the number of the node each comes from, the code point, the node."""
    offsets = (units >> 10) << ((units & 512) >> 6)

    def step(nodes: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        letters = np.arange(first, last + 1)
        places = (nodes ^ offsets[nodes])[:, None] ^ letters
        places[places >= len(units)] = 0
        origins, found = np.nonzero(units[places] & 0x800000FF == letters)
        return origins, letters[found], places[origins, found]

    results = []
    for size, (first, last) in enumerate(((1, 0x7F), (0xC2, 0xDF), (0xE0, 0xEF), (0xF0, 0xF4)), 1):
        origins, letters, found = step(nodes, first, last)
        codes = letters if size == 1 else letters & (0x7F >> size)
        for _ in range(size - 1):
            parents, letters, found = step(found, 0x80, 0xBF)
            origins, codes = origins[parents], (codes[parents] << 6) | (letters & 0x3F)
        results.append((origins, codes, found))
    origins, codes, found = (np.concatenate(parts) for parts in zip(*results, strict=True))
    return origins, codes, found


def _rules(charsmap: bytes) -> tuple[dict[int, str], np.ndarray, np.ndarray]:
    if not charsmap:
        return {}, np.zeros(0, np.int64), np.zeros(0, np.int64)
    size = struct.unpack_from("<I", charsmap)[0]
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    targets = charsmap[4 + size :]
    _, codes, nodes = _characters_on(units, np.zeros(1, np.int64))
    origins, seconds, _ = _characters_on(units, nodes)
    offsets = (units >> 10) << ((units & 512) >> 6)
    has_leaf = (units[nodes] >> 8) & 1 == 1
    places = units[nodes ^ offsets[nodes]] & 0x7FFFFFFF
    rules = {
        code: targets[place : targets.index(b"\0", place)].decode("utf-8")
        for code, place in zip(codes[has_leaf].tolist(), places[has_leaf].tolist(), strict=True)
    }
    return rules, np.unique(codes[origins]), np.unique(seconds)
