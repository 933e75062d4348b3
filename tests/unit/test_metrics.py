"""Metrics against values worked out by hand, an oracle, and what must hold for any text."""

import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo import metrics
from hanmo.errors import UnsupportedError

TEXT = st.text(alphabet="天地人和你我", max_size=8)
SAMPLES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5)


def split(samples: list[tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
    return [said for said, _ in samples], [[expected] for _, expected in samples]


def test_bleu_by_hand() -> None:
    # 你好吗 against 你好啊: 2 of 3 characters, 1 of 2 pairs, no triple (1 / (2 x 1)), no quadruple (1 / (4 x 1)).
    assert metrics.bleu(["你好吗"], [["你好啊"]])[1] == pytest.approx(math.sqrt(2 / 3 * 1 / 2))
    assert metrics.bleu(["你好吗"], [["你好啊"]])[3] == pytest.approx((2 / 3 * 1 / 2 * 1 / 2 * 1 / 4) ** 0.25)


def test_bleu_brevity_uses_the_closest_reference_and_the_shorter_of_two() -> None:
    assert metrics.bleu(["天地"], [["天地人", "天"]])[0] == pytest.approx(1.0)
    assert metrics.bleu(["天地"], [["天地人和"]])[0] == pytest.approx(math.exp(-1))


def test_dist_by_hand() -> None:
    # 天地天地 has the pairs 天地, 地天, 天地; the published reading misses the last.
    assert metrics.distinct(["天地天地"], 2) == pytest.approx(2 / 3)
    assert metrics.distinct(["天地天地"], 2, published=True) == pytest.approx(1.0)
    assert metrics.distinct(["天"], 2) == 0


def test_f1_is_the_best_over_references() -> None:
    # Bags {天, 天} and {天, 人, 和}: one in common, 2 x 1 / (2 + 3).
    assert metrics.unigram_f1(["天天"], [["天人和"]]) == pytest.approx(0.4)
    assert metrics.unigram_f1(["天天"], [["天人和", "天"]]) == pytest.approx(2 / 3)


def test_rouge_l_by_hand() -> None:
    # 天地人 and 天人和: 天人, P = R = 2/3 and so F.
    assert metrics.rouge_l(["天地人"], [["天人和"]]) == pytest.approx(2 / 3)
    # 天人 and 天地人和: P = 1, R = 1/2.
    assert metrics.rouge_l(["天人"], [["天地人和"]]) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))


def test_rouge_n_is_per_sample_and_clipped() -> None:
    # 天天 against 天地: one of two characters, once.
    assert metrics.rouge_n(["天天", "人"], [["天地"], ["人"]], 1) == pytest.approx((0.75, 0.75))
    assert metrics.rouge_n(["天地人"], [["天地"]], 2) == pytest.approx((1.0, 2 / 3))


def test_published_rouge_counts_ngrams_across_samples() -> None:
    samples = ["天", "地"], [["天"], ["地"]]
    assert metrics.rouge_n_published(*samples, 2) == 1  # 天地 runs from one sample into the next
    assert metrics.rouge_n_published(["地", "天"], [["天"], ["地"]], 2) == 0


def test_empty_references_are_defined_when_corrected_and_refused_when_published() -> None:
    for metric in (metrics.unigram_f1, metrics.rouge_l):
        assert metric(["", "天"], [[""], [""]]) == 0.5
        assert metric(["天地"], [["", "天地"]]) == 1
        with pytest.raises(UnsupportedError, match=r"sample 1 .* corrected reading"):
            metric(["天", "天"], [["天"], [""]], published=True)
    assert metrics.rouge_n(["", "天", "天"], [[""], ["天"], ["地"]], 2).f == pytest.approx(2 / 3)


@given(TEXT, TEXT)
def test_common_subsequence_equals_the_plain_recursion(first: str, second: str) -> None:
    @cache
    def longest(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    assert metrics.common_subsequence(first, second) == longest(0, 0)


@given(SAMPLES)
def test_every_value_is_a_share_and_copies_score_one(samples: list[tuple[str, str]]) -> None:
    said, expected = split(samples)
    copies = [[text] for text in said]
    for metric in (metrics.unigram_f1, metrics.rouge_l):
        assert 0 <= metric(said, expected) <= 1 + 1e-12
        assert metric(said, copies) == pytest.approx(1)
    for n in (1, 2):
        assert all(0 <= value <= 1 for value in metrics.rouge_n(said, expected, n))
        assert metrics.rouge_n(said, copies, n) == pytest.approx((1, 1))
        assert 0 <= metrics.distinct(said, n) <= 1
    assert 0 <= metrics.bleu(said, expected)[3] <= 1
    if all(len(text) >= 4 for text in said):
        assert metrics.bleu(said, copies)[3] == pytest.approx(1)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(samples: list[tuple[str, str]], random: object) -> None:
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for k in (1, 4):
        assert metrics.bleu(*split(samples))[k - 1] == pytest.approx(metrics.bleu(*split(shuffled))[k - 1])
    for metric in (metrics.unigram_f1, metrics.rouge_l):
        assert metric(*split(samples)) == pytest.approx(metric(*split(shuffled)))
    assert metrics.rouge_n(*split(samples), 2) == pytest.approx(metrics.rouge_n(*split(shuffled), 2))


@given(st.lists(st.tuples(st.text("天地人和你", min_size=4, max_size=9), TEXT.filter(bool)), min_size=1, max_size=5))
def test_bleu_agrees_with_sacrebleu(samples: list[tuple[str, str]]) -> None:
    """Where no hypothesis is shorter than four tokens the two definitions are one."""
    sacrebleu = pytest.importorskip("sacrebleu")
    said, expected = split(samples)
    oracle = sacrebleu.corpus_bleu(
        [" ".join(text) for text in said],
        [[" ".join(options[0]) for options in expected]],
        tokenize="none",
        smooth_method="exp",
        force=True,
    )
    assert metrics.bleu(said, expected)[3] == pytest.approx(oracle.score / 100, abs=1e-9)
