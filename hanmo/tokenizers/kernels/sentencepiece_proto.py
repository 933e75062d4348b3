"""Reads a sentencepiece model for the kernel: its pieces, settings, and the rules of its character map.

The library exposes neither settings nor rules. The map is a double-array trie over UTF-8 (darts-clone) to strings.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as pb  # needs protobuf

NORMAL, UNKNOWN_PIECE, CONTROL, USER_DEFINED = 1, 2, 3, 4


@dataclass(frozen=True)
class Model:
    pieces: Any  # each with ``piece``, ``score`` and ``type``
    rules: dict[int, str]  # the text that the character map makes of a single code point
    starts: np.ndarray  # the first code points of rules for several characters
    follows: np.ndarray  # the second ones
    is_bpe: bool
    usual_spaces: bool  # a space is put before the text, runs of spaces become one, and U+2581 stands for a space
    other_pieces: bool  # there are byte pieces or unused pieces


def read_model(serialised: bytes) -> Model:
    proto: Any = pb.ModelProto.FromString(serialised)  # type: ignore[attr-defined]
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    spaces = normalizer.add_dummy_prefix and normalizer.remove_extra_whitespaces and normalizer.escape_whitespaces
    return Model(
        proto.pieces,
        *_rules(normalizer.precompiled_charsmap),
        is_bpe=trainer.model_type == trainer.BPE,
        usual_spaces=spaces and not trainer.treat_whitespace_as_suffix,
        other_pieces=any(piece.type not in (NORMAL, UNKNOWN_PIECE, CONTROL, USER_DEFINED) for piece in proto.pieces),
    )


def _characters_on(units: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The children of trie nodes by one UTF-8 character: the index of the parent, the code point, the child."""
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
