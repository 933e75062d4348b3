"""Blank filling: what is hidden, in which share, and that a row says everything that was hidden."""

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.errors import UnsupportedError
from hanmo.families.glm.pretraining import draw_document, draw_objective, draw_sentences, draw_spans
from hanmo.rows import IGNORE, Part
from tests.unit.tiny import tiny


@given(st.integers(1, 600), st.integers(0, 99))
def test_spans_are_15_percent_and_apart(length: int, seed: int) -> None:
    spans = draw_spans(length, Random(seed))
    assert sum(last - first for first, last in spans) == max(1, round(0.15 * length))
    assert spans[0][0] >= 0 and spans[-1][1] <= length
    assert all(first < last for first, last in spans)
    assert all(before[1] < after[0] for before, after in pairwise(spans))


def test_spans_have_poisson_lengths_and_lie_anywhere() -> None:
    lengths, starts = [], []
    for seed in range(300):
        spans = draw_spans(400, Random(seed))
        lengths += [last - first for first, last in spans[:-1]]  # the last one is cut
        starts += [first for first, _ in spans]
    mean = sum(lengths) / len(lengths)
    assert mean == pytest.approx(3.05, abs=0.1)  # 0 counts as 1: 3 + exp(-3)
    variance = sum((length - mean) ** 2 for length in lengths) / len(lengths)
    assert variance == pytest.approx(2.75, abs=0.25)
    assert sum(starts) / len(starts) == pytest.approx(198, abs=5)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=20), st.integers(0, 99))
def test_sentences_are_hidden_whole(sizes: list[int], seed: int) -> None:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    spans = draw_sentences(ends, Random(seed))
    hidden = sum(last - first for first, last in spans)
    assert set(spans) < set(zip([0, *ends], ends, strict=False))
    assert hidden >= 0.15 * ends[-1] or len(spans) == len(sizes) - 1
    smallest = min(last - first for first, last in spans)
    assert hidden - smallest < 0.15 * ends[-1] or any(hidden - (b - a) < 0.15 * ends[-1] for a, b in spans)


@given(st.integers(1, 500), st.integers(0, 99))
def test_a_document_loses_its_second_part(length: int, seed: int) -> None:
    [(first, last)] = draw_document(length, Random(seed))
    assert last == length and 0 <= first <= -(-length // 2)


def test_objectives_come_as_often_as_they_should() -> None:
    rng = Random(0)
    drawn = [draw_objective({"spans": 2.0, "document": 1.0, "sentences": 0.0}, rng) for _ in range(3000)]
    assert drawn.count("document") == pytest.approx(1000, abs=100)
    assert "sentences" not in drawn


@pytest.mark.parametrize("objective, token", [("spans", 0), ("sentences", 1), ("document", 2)])
def test_a_row_hides_and_tells(objective: str, token: int, tmp_path: Path) -> None:
    opened = tiny("glm", tmp_path)
    family, config = opened.family, opened.family.config
    ids = tuple(opened.tokenizer.encode("今天天气真不错。明天去哪里玩？三加五等于八。" * 4, add_special_tokens=False))
    orders = set()
    for seed in range(20):
        row = family.pretrain([Part(ids, True)], Random(seed), {objective: 1.0})
        fed, labels = row.inputs["input_ids"].tolist(), row.labels.tolist()
        first, second = row.inputs["position_ids"].tolist()
        prefix = int(row.inputs["prefix"])
        context = fed[:prefix]
        mask = config.mask_token_ids[token]
        assert labels[:prefix] == [IGNORE] * prefix
        assert first[:prefix] == list(range(prefix)) and second[:prefix] == [0] * prefix
        # Every answer by the place of its mask token: put back, the text is whole.
        answers: dict[int, list[int]] = {}
        for place, token_id, label in zip(range(prefix, len(fed)), fed[prefix:], labels[prefix:], strict=True):
            if token_id == config.sop_token_id:
                answers[first[place]] = []
            assert second[place] == len(answers[first[place]]) + 1
            if label != config.eop_token_id:
                answers[first[place]].append(label)
        assert sorted(answers) == [place for place, id_ in enumerate(context) if id_ == mask]
        whole = [id_ for place, old in enumerate(context) for id_ in (answers[place] if old == mask else [old])]
        assert tuple(whole[1:-1]) == ids
        orders.add(list(answers) == sorted(answers))
    assert orders == ({True} if objective == "document" else {True, False})


def test_too_long_for_the_positions(tmp_path: Path) -> None:
    family = tiny("glm", tmp_path).family
    highest = family.config.max_sequence_length
    family.pretrain([Part((5,) * (highest - 1), True)], Random(0), {"document": 1.0})
    with pytest.raises(UnsupportedError, match=f"limit={highest - 1}"):
        family.pretrain([Part((5,) * (2 * highest), True)], Random(0), {"spans": 1.0})
