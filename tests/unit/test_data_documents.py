"""Pieces and streams of documents, made one by one, against the same made of everything at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hanmo.data.rows.dataset import DUMMY_ROW, EpochSampler, RowDataset
from hanmo.data.rows.documents import Pieces, StoreDocuments, StreamRows, StreamSampler, read_documents
from hanmo.data.store.token_store import Store
from hanmo.data.store.tokenize import TokenizerPlace, tokenize
from hanmo.errors import ConfigError, RecordError
from hanmo.families.base import Family
from hanmo.families.transformer_xl.family import stream_rows
from hanmo.records import Dialogue, PromptResponse, Rejects, Text
from hanmo.rows import IGNORE, Part
from tests.original_streams import crop_row, stream_batches
from tests.unit.tiny import NAMES, tiny

STOP = 99


class Letters(Family):
    """Next-token prediction and streams on bare ids."""

    name = "letters"
    streams = True

    def row(self, parts: Sequence[Part], stop: bool = True, feed_stop: bool = False) -> Any:
        from hanmo.nn.causal import causal_row

        return causal_row(parts, STOP, stop, feed_stop)

    def segments(self, documents: Any, length: int) -> Any:
        return stream_rows(documents, length, STOP)

    def parts(self, *args: Any) -> Any:
        raise NotImplementedError

    prompt = context = parts


FAMILY = Letters(None, None)  # type: ignore[arg-type, abstract]
documents = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=8)


def dataset(sizes: list[tuple[int, int]]) -> RowDataset:
    """Documents of an unscored and a scored part each, all ids different."""
    rows, next_id = RowDataset(FAMILY), 100
    for given_ids, learned in sizes:
        first, second = range(next_id, next_id + given_ids), range(next_id + given_ids, next_id + given_ids + learned)
        rows.append([Part(tuple(first), False), Part(tuple(second), True)])
        next_id += given_ids + learned
    return rows


@given(documents, st.integers(2, 12))
def test_rows_of_a_stream_are_those_of_all_documents_at_once(sizes: list[tuple[int, int]], length: int) -> None:
    rows = dataset(sizes)
    streams = StreamRows(rows, FAMILY, length, seed=None)
    whole = stream_rows([rows.parts(place) for place in range(len(rows))], length, STOP)
    assert len(streams) == len(whole)
    for place, expected in enumerate(whole):
        row = streams.row(place)
        assert torch.equal(row.labels, expected.labels), place
        for name in ("input_ids", "reach"):
            assert torch.equal(row.inputs[name], expected.inputs[name]), (place, name)


def test_the_seed_orders_the_documents_of_a_stream() -> None:
    rows = dataset([(0, 5)] * 20)
    orders = [
        [int(i) for r in range(20) for i in StreamRows(rows, FAMILY, 5, seed).row(r).inputs["input_ids"]]
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(100, 200))


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 3))
def test_batches_of_streams(rows: int, batch: int, epoch: int) -> None:
    if rows < batch:
        with pytest.raises(ConfigError, match=f"{rows} rows are too few for {batch} streams"):
            StreamSampler(rows, batch)
        return
    sampler = StreamSampler(rows, batch)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    steps = stream_batches(rows, batch, start=epoch * (rows // batch))
    assert [found[i : i + batch] for i in range(0, len(found), batch)] == [next(steps) for _ in range(rows // batch)]
    once = list(StreamSampler(rows, batch, once=True))
    assert sorted(place for place in once if place != DUMMY_ROW) == list(range(rows))
    assert len(once) % batch == 0


@given(documents, st.integers(2, 12))
def test_pieces_learn_every_token_once(sizes: list[tuple[int, int]], limit: int) -> None:
    rows = dataset(sizes)
    pieces = Pieces(rows, FAMILY, limit, {})
    learned = []
    for place in range(len(pieces)):
        row = pieces.row(place)
        assert len(row.labels) == pieces.lengths[place] <= limit
        inputs = row.inputs["input_ids"].tolist()
        for at, label in enumerate(row.labels.tolist()):
            if label not in (IGNORE, STOP):
                assert label == inputs[at] + 1  # ids count on within a document
            if label != IGNORE:
                learned.append(label)
    expected = []
    for place in range(len(rows)):
        given_part, text = rows.parts(place)
        expected += [*text.ids[0 if given_part.ids else 1 :], STOP]
    assert learned == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_store_gives_the_documents_of_its_records(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path / "vocabulary")
    if name == "eva":
        with pytest.raises(Exception, match="EVA learns from dialogues"):
            read_documents([Text("你好")], opened.family, 64, None, Rejects())
        return
    lines = ["今天天气真不错。明天去哪里玩？", "火锅怎么样", "你好吗" * 9]
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    saved = tmp_path / "tokenizer"
    opened.tokenizer.save_pretrained(str(saved))
    vocabulary = next(iter(opened.tokenizer.vocab_files_names.values())) if name != "huggingface" else None
    place = TokenizerPlace(str(saved / vocabulary), name) if vocabulary else TokenizerPlace(str(saved))
    tokenize(place, [file], tmp_path / "store")
    store = StoreDocuments(Store(tmp_path / "store", opened.tokenizer), opened.family)
    raw, running = read_documents([Text(line) for line in lines], opened.family, 64, None, Rejects())
    assert running and list(store.lengths) == raw.lengths
    for number in range(len(lines)):
        ours, theirs = ([(i, p.scored) for p in d.parts(number) for i in p.ids] for d in (store, raw))
        assert ours == theirs


def test_every_reply_is_learned_and_kinds_do_not_mix(tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path)
    rows, running = read_documents([Dialogue(("你好", "今天", "天气", "谢谢"))], opened.family, 64, None, Rejects())
    assert not running and len(rows) == 3
    with pytest.raises(RecordError, match=r"a\.txt:2: the records before are running text"):
        records = [Text("你好"), Dialogue(("你", "好"), where="a.txt:2")]
        read_documents(records, opened.family, 64, None, Rejects())
    streams = tiny("transformer_xl", tmp_path / "xl").family
    assert read_documents([PromptResponse("你好", "今天")], streams, 64, None, Rejects())[1]


def test_what_is_drawn_changes_with_the_epoch_alone(tmp_path: Path) -> None:
    family = tiny("glm", tmp_path).family
    rows, _ = read_documents([Text("今天天气真不错。明天去哪里玩？" * 3)] * 4, family, 64, None, Rejects())
    pieces, again = (Pieces(rows, family, 40, {"spans": 1.0}, seed=3) for _ in range(2))
    sampler = EpochSampler(pieces.lengths, 0, drawn=pieces.drawn)
    sampler.set_epoch(2)
    items = list(sampler)
    assert sorted(item - 2 * len(pieces) for item in items) == list(range(len(pieces)))
    for item in items:
        assert torch.equal(pieces.row(item).inputs["input_ids"], again.row(item).inputs["input_ids"])
    other = [pieces.row(item % len(pieces)).inputs["input_ids"].tolist() for item in items]
    assert other != [pieces.row(item).inputs["input_ids"].tolist() for item in items]
    assert pieces.where(items[0]) == pieces.where(items[0] % len(pieces))


def test_crops_have_the_types_of_rows() -> None:
    """A document of one token and its end, then false padding: what is scored is by hand."""
    row = crop_row([[Part((5,), True)]], length=4, number=0, stop_id=1, across=False)
    assert row.inputs["input_ids"].tolist() == [5, 1, 1, 1] and row.labels.tolist() == [1, IGNORE, IGNORE, IGNORE]
    assert row.weights.tolist() == [1, 0, 0, 0] and row.end == 3
    assert row.inputs["attention_mask"].tolist() == [1] * 4
    types = (row.inputs["input_ids"].dtype, row.inputs["attention_mask"].dtype, row.labels.dtype, row.weights.dtype)
    assert types == (torch.int64, torch.int64, torch.int64, torch.float32)
