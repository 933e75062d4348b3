"""Rows in flat arrays come back as they went in; what is dropped is named; orders repeat."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from hanmo.data.rows.dataset import DUMMY_ROW, ROW_IDS, Collator, EpochSampler, RowDataset, make_rows
from hanmo.families.base import Family
from hanmo.records import Dialogue, Record, Rejects
from hanmo.rows import IGNORE, Part, Row


class Letters(Family):
    """Code points as ids; the last turn is learned; a record longer than the limit does not fit."""

    name = "letters"

    def parts(self, record: Record, limit: int, response_limit: int | None = None) -> list[list[Part]]:
        assert isinstance(record, Dialogue)
        parts = [Part(tuple(map(ord, turn)), False) for turn in record.turns]
        parts[-1] = Part(parts[-1].ids, True)
        return [parts] if sum(len(part.ids) for part in parts) <= limit else []

    def row(self, parts: Sequence[Part], stop: bool = True, feed_stop: bool = False) -> Row:
        ids = torch.tensor([id_ for part in parts for id_ in part.ids])
        scored = torch.tensor([part.scored for part in parts for _ in part.ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return Row(inputs, torch.where(scored, ids, IGNORE), scored.float(), len(ids) - 1)

    def prompt(self, context_ids: Sequence[int]) -> Any:
        raise NotImplementedError

    def context(self, record: Record, limit: int) -> Any:
        raise NotImplementedError


FAMILY = Letters(None, None)  # type: ignore[arg-type, abstract]
parts = st.builds(Part, st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple), st.booleans())


@given(st.lists(st.tuples(st.lists(parts, min_size=1, max_size=4), st.sampled_from(["", "a.txt:3"]))))
def test_parts_come_back_as_they_went_in(examples: list[tuple[list[Part], str]]) -> None:
    rows = RowDataset(FAMILY)
    for some, where in examples:
        rows.append(some, where)
    assert len(rows) == len(examples)
    assert [rows.parts(i) for i in range(len(rows))] == [some for some, _ in examples]
    assert [rows.where(i) for i in range(len(rows))] == [w or f"row {i}" for i, (_, w) in enumerate(examples)]
    assert rows.lengths == [sum(len(part.ids) for part in some) for some, _ in examples]


def test_what_does_not_fit_is_named() -> None:
    dropped = Rejects()
    records = [Dialogue(("ab", "c"), where="d/a.txt:1"), Dialogue(("abcdef", "gh"), where="d/a.txt:2")]
    rows = make_rows(records, FAMILY, limit=4, response_limit=9, dropped=dropped)
    assert len(rows) == 1
    assert [str(error) for error in dropped.errors] == ["d/a.txt:2: does not fit into limit=4, response_limit=9"]


def test_a_batch_carries_its_places() -> None:
    rows = make_rows([Dialogue(("ab", "c")), Dialogue(("a", "c"))], FAMILY, 9, None, Rejects())
    batch = Collator({"input_ids": 7})([rows[1], rows[0]])
    assert batch[ROW_IDS].tolist() == [1, 0]
    assert batch["input_ids"].tolist() == [[97, 99, 7], [97, 98, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORE, 99, IGNORE], [IGNORE, IGNORE, 99]]
    assert batch["weights"].tolist() == [[0, 1, 0], [0, 0, 1]]


@given(st.lists(st.integers(1, 99), min_size=1, max_size=60), st.integers(0, 9), st.integers(1, 5), st.integers(0, 3))
def test_an_order_is_a_permutation_that_repeats(lengths: list[int], seed: int, group: int, epoch: int) -> None:
    sampler = EpochSampler(lengths, seed, group)
    sampler.set_epoch(epoch)
    torch.manual_seed(1)
    first = list(sampler)
    torch.manual_seed(2)  # the global generator has no say
    assert first == list(sampler)
    assert sorted(first) == list(range(len(lengths)))


def test_fillers_even_out_and_weigh_nothing() -> None:
    sampler = EpochSampler([1] * 5, seed=0, multiple=4)
    order = list(sampler)
    assert len(order) == len(sampler) == 8
    assert order[:5] == list(EpochSampler([1] * 5, seed=0))
    assert order[5:] == [DUMMY_ROW] * 3
    assert len(EpochSampler([1] * 8, seed=0, multiple=4)) == 8
    rows = make_rows([Dialogue(("ab", "c"))], FAMILY, 9, None, Rejects())
    place, row = rows[DUMMY_ROW]
    assert place == DUMMY_ROW
    assert row.weights.tolist() == [0, 0, 0]
    assert row.labels.tolist() == rows[0][1].labels.tolist()


def test_epochs_and_seeds_differ_and_groups_are_alike() -> None:
    lengths = list(range(200))
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(lengths, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    grouped = list(EpochSampler(lengths, 0, group=10))
    spread = [max(grouped[i : i + 10]) - min(grouped[i : i + 10]) for i in range(0, 200, 10)]
    assert sum(spread) / len(spread) < 60  # by chance about 160


def test_groups_come_in_random_order_and_whole() -> None:
    lengths = list(range(1005))
    order = list(EpochSampler(lengths, 0, group=10))
    assert sorted(order) == lengths and 1004 in order[:10]  # what needs most memory comes first
    means = [sum(order[start : start + 10]) / 10 for start in range(0, 1000, 10)]
    falls = sum(later < earlier for earlier, later in itertools.pairwise(means))
    assert 35 < falls < 65  # sorted groups would fall nearly always


def test_rows_are_grouped_by_length_only_where_asked() -> None:
    """Grouped, the longest row comes first; else its place is the seed's."""
    lengths = [1] * 19 + [9]
    firsts = [next(iter(EpochSampler(lengths, seed))) for seed in range(8)]
    assert len(set(firsts)) > 1
    assert [next(iter(EpochSampler(lengths, seed, group=2))) for seed in range(8)] == [19] * 8
