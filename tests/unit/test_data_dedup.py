"""MinHash: signatures estimate similarity, planted near-duplicates are found, others are left alone."""

from random import Random

import numpy as np
import pytest

from hanmo.data.prepare import dedup
from hanmo.data.prepare.cleaning.duplicates import SameSessions
from hanmo.data.prepare.dedup import LshIndex, NearTexts, shingles, signature, similarity
from hanmo.records import Text


def _texts(count: int, seed: int, length: int = 80) -> list[str]:
    rng = Random(seed)
    return ["".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(length)) for _ in range(count)]


def test_shingles_are_the_different_n_grams() -> None:
    assert len(shingles("一二三四五六")) == 3
    assert len(shingles("一二三四一二三四")) == 4  # 一二三四, 二三四一, 三四一二, 四一二三
    assert len(shingles("一二")) == 1
    assert len(shingles("")) == 1


@pytest.mark.parametrize("shared", [0.3, 0.6, 0.9])
def test_signatures_estimate_the_share_of_n_grams_in_common(shared: float) -> None:
    text, other = _texts(2, 5, 1000)
    cut = int(shared * len(text))
    mixed = text[:cut] + other[cut:]
    ours, theirs = set(shingles(text).tolist()), set(shingles(mixed).tolist())
    exact = len(ours & theirs) / len(ours | theirs)
    assert abs(similarity(signature(text), signature(mixed)) - exact) < 0.12  # 2.6 standard deviations of 120 hashes


def test_long_texts_in_blocks_have_the_same_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = _texts(1, 7, 3000)
    whole = signature(text)
    monkeypatch.setattr(dedup, "_BLOCK", 100)
    assert np.array_equal(signature(text), whole)


def test_planted_near_duplicates_are_found_and_only_they(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "_GROWTH", 64)  # several blocks
    originals = _texts(400, 1)
    planted = [text[:40] + text[41:] for text in originals[:200]]  # one character gone: 4 to 7 of 77 n-grams
    near = LshIndex()
    for text in originals + planted:
        near.add(signature(text))
    firsts = near.first_similar(0.8)
    assert firsts[:400].tolist() == list(range(400))
    assert (firsts[400:] == np.arange(200)).sum() >= 198
    assert len(firsts) == 600


def test_the_first_of_a_chain_is_kept() -> None:
    (text,) = _texts(1, 3, 200)
    near = LshIndex()
    for number in range(4):
        near.add(signature(text + "尾" * number))
    assert near.first_similar(0.8).tolist() == [0, 0, 0, 0]


def test_below_the_threshold_texts_are_kept() -> None:
    text, other = _texts(2, 9, 200)
    near = LshIndex()
    near.add(signature(text))
    near.add(signature(text[:150] + other[150:]))
    assert near.first_similar(0.9).tolist() == [0, 1]


def test_empty() -> None:
    assert LshIndex().first_similar(0.8).tolist() == []


def test_a_text_that_differs_in_punctuation_and_space_has_come_before() -> None:
    faults = SameSessions().faults(map(Text, ("你好！", "你好", "再见", "再 见")))
    assert [fault is not None for fault in faults] == [False, True, False, True]


def test_the_nearest_text_is_the_most_alike() -> None:
    known = _texts(50, 2)
    texts = NearTexts(known)
    number, share = texts.nearest(known[9] + "也")
    assert number == 9 and share >= 0.8
    assert texts.nearest("别的")[1] < 0.8
