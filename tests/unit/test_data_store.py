"""The store of token ids: what comes out is what went in, whoever wrote it and however often it was interrupted."""

import errno
import json
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hanmo.data.prepare.vocabulary import build
from hanmo.data.store import tokenize as tokenize_module
from hanmo.data.store.token_store import Store, encode, vocabulary_hash
from hanmo.data.store.tokenize import TokenizerPlace, tokenize
from hanmo.errors import ConfigError, InUseError, RecordError, VocabularyError
from hanmo.locks import holding
from hanmo.records import Dialogue, PromptResponse, Record, Rejects, ScoredAnswers, Text, write_records
from tests import processes

RECORDS: list[Record] = [
    Text("春天来了"),
    Text(""),
    Dialogue(("你好", "您好吗", "好")),
    Dialogue(("你好", "好"), system="春天"),
    PromptResponse("天", "来", prefix="好"),
    ScoredAnswers("天", (("坏", 0.0), ("好", 1.0))),
] * 40


def _vocabulary(path: Path, extra: str = "") -> TokenizerPlace:
    """An EVA-style vocabulary of a few characters."""
    path.write_text("\n".join(build(["春天来了你您好吗坏" + extra], words=0)), encoding="utf-8")
    return TokenizerPlace(str(path), "eva")


@pytest.fixture
def place(tmp_path: Path) -> TokenizerPlace:
    return _vocabulary(tmp_path / "vocab.txt")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_records(tmp_path / "in.jsonl", RECORDS)
    return tmp_path / "in.jsonl"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _expected(record: Record) -> tuple[str, list[str]]:
    if isinstance(record, Text):
        return "text", [record.text]
    if isinstance(record, Dialogue):
        return "dialogue", [record.system, *record.turns] if record.system else list(record.turns)
    best = record.best() if isinstance(record, ScoredAnswers) else record
    return "pair", [best.prompt, best.prefix + best.response]


def test_documents_come_back_as_the_tokenizer_cuts_them(place: TokenizerPlace, source: Path, tmp_path: Path) -> None:
    about = tokenize(place, [source], tmp_path / "store")
    tokenizer = place.open()
    store = Store(tmp_path / "store", tokenizer)
    assert len(store) == about.documents == len(RECORDS)
    total = 0
    for number, record in enumerate(RECORDS):
        kind, texts = _expected(record)
        ids = [tokenizer.encode_plain(text) for text in texts]
        assert store.kind(number) == kind
        assert [part.tolist() for part in store.parts(number)] == ids
        assert store.lengths()[number] == sum(map(len, ids))
        total += sum(map(len, ids))
    assert store.about.tokens == total == len(store.ids)
    assert store.ids.dtype == np.uint16


def test_documents_lie_end_to_end_and_end_with_the_store(place: TokenizerPlace, source: Path, tmp_path: Path) -> None:
    tokenize(place, [source], tmp_path / "store")
    store = Store(tmp_path / "store")
    whole = [[id_ for part in store.parts(number) for id_ in part.tolist()] for number in range(len(store))]
    assert [id_ for ids in whole for id_ in ids] == store.ids.tolist()
    assert list(map(len, whole)) == store.lengths().tolist()
    for beyond in (len(store), -1):
        with pytest.raises(IndexError):
            store.parts(beyond)


def test_a_worker_process_does_without_torch(place: TokenizerPlace, tmp_path: Path) -> None:
    """It would cost each of them seconds."""
    (tmp_path / "work").write_bytes(pickle.dumps(partial(tokenize_module._tokenize_block, place.open())))
    code = (
        f"import pickle, sys; from pathlib import Path; work = pickle.loads(Path({str(tmp_path / 'work')!r}).read_bytes())\n"
        f"from hanmo.data.store.tokenize import _Block; work(_Block(['春天', '来'], [2], [1]), Path({str(tmp_path / 'out')!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert processes.run([sys.executable, "-c", code]).returncode == 0
    assert np.load(tmp_path / "out")["ids"].tolist() == place.open().encode_plain("春天来")


@pytest.mark.slow
def test_one_worker_two_workers_and_an_interruption_write_the_same(
    place: TokenizerPlace, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_module, "BLOCK", 30)
    tokenize(place, [source], tmp_path / "one")
    tokenize(place, [source], tmp_path / "two", workers=2)

    def stop(done: int) -> None:
        if done >= 90:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(place, [source], tmp_path / "cut", progress=stop)
    with pytest.raises(RecordError, match="no store here"):
        Store(tmp_path / "cut")
    (kept,) = tmp_path.glob(".cut*blocks")
    assert len(list(kept.iterdir())) == 3
    (kept / "00000001.tmp").write_bytes(b"half a block")
    tokenize(place, [source], tmp_path / "cut")
    assert _files(tmp_path / "one") == _files(tmp_path / "two") == _files(tmp_path / "cut")
    assert not list(tmp_path.glob(".*blocks"))


def test_another_tokenizer_is_refused(place: TokenizerPlace, source: Path, tmp_path: Path) -> None:
    tokenize(place, [source], tmp_path / "store")
    other = _vocabulary(tmp_path / "other.txt", "山").open()
    with pytest.raises(VocabularyError, match="tokenise the data again"):
        Store(tmp_path / "store", other)
    assert vocabulary_hash(place.open()) == vocabulary_hash(TokenizerPlace(place.path, "eva").open())


def test_damage_is_named(place: TokenizerPlace, source: Path, tmp_path: Path) -> None:
    tokenize(place, [source], tmp_path / "store")
    ids = tmp_path / "store" / "ids.bin"
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-2])
    with pytest.raises(RecordError, match=r"ids\.bin.*expected"):
        Store(tmp_path / "store")
    ids.unlink()
    with pytest.raises(RecordError, match=r"ids\.bin.*missing"):
        Store(tmp_path / "store")
    ids.write_bytes(whole)
    about = tmp_path / "store" / "store.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "format": 99}))
    with pytest.raises(RecordError, match="format 99"):
        Store(tmp_path / "store")
    about.unlink()
    with pytest.raises(RecordError, match="unfinished"):
        Store(tmp_path / "store")


@pytest.mark.parametrize(
    ("name", "dtype", "value", "said"),
    [
        ("parts.bin", np.int64, -1, "must not fall"),
        ("parts.bin", np.int64, 1 << 40, "must not fall|ends at"),
        ("documents.bin", np.int64, 1 << 40, "must not fall|ends at"),
        ("kinds.bin", np.uint8, 9, "kinds are below 3, 9 is not"),
        ("ids.bin", np.uint16, 60_000, "document 0 holds the id 60000, the vocabulary "),
    ],
)
def test_a_wrong_number_in_a_store_is_named(
    place: TokenizerPlace, source: Path, tmp_path: Path, name: str, dtype: type[Any], value: int, said: str
) -> None:
    tokenize(place, [source], tmp_path / "store")
    path = tmp_path / "store" / name
    numbers = np.fromfile(path, dtype)
    numbers[0] = value
    numbers.tofile(path)
    with pytest.raises(RecordError, match=rf"{name}: damaged store: .*({said})"):
        Store(tmp_path / "store", place.open()).parts(0)


def test_a_folder_with_other_files_is_not_written_to(place: TokenizerPlace, source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        tokenize(place, [source], tmp_path / "mine")


def test_what_a_killed_run_left_does_not_stop_the_next(place: TokenizerPlace, source: Path, tmp_path: Path) -> None:
    """Its half-written files were taken for somebody else's."""
    tokenize(place, [source], tmp_path / "one")
    (tmp_path / "store").mkdir()
    for name in ("ids.bin", "store.json"):
        (tmp_path / "store" / f".{name}.12345.tmp").write_bytes(b"half")
    tokenize(place, [source], tmp_path / "store")
    assert _files(tmp_path / "store") == _files(tmp_path / "one")


def test_a_second_run_is_told_of_the_first_before_it_looks_at_its_files(
    place: TokenizerPlace, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".ids.bin.12345.tmp").write_bytes(b"half")
    with holding(tmp_path / "store"), pytest.raises(InUseError, match="store: in use by process"):
        tokenize(place, [source], tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".ids.bin.12345.tmp"]


def test_a_store_stays_until_the_next_is_written(
    place: TokenizerPlace, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error such as a full disk while the blocks are put together left neither."""
    tokenize(place, [source], tmp_path / "store")
    before = _files(tmp_path / "store")
    write_records(tmp_path / "more.jsonl", RECORDS * 2)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tokenize_module.np, "cumsum", full)
    with pytest.raises(OSError, match="No space left"):
        tokenize(place, [tmp_path / "more.jsonl"], tmp_path / "store")
    assert _files(tmp_path / "store") == before and len(Store(tmp_path / "store")) == len(RECORDS)


def test_no_documents(place: TokenizerPlace, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    tokenize(place, [tmp_path / "empty.txt"], tmp_path / "store")
    store = Store(tmp_path / "store")
    assert (len(store), store.about.tokens, store.lengths().tolist()) == (0, 0, [])


def test_bad_records_are_counted(place: TokenizerPlace, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "春"}\n{"text": 1}\n{"text": "天"}\n', encoding="utf-8")
    bad = Rejects()
    assert tokenize(place, [tmp_path / "in.jsonl"], tmp_path / "store", bad=bad).documents == 2
    assert len(bad) == 1


@pytest.mark.parametrize(
    ("path", "family", "message"), [("nowhere", "", "say whose it is"), ("in.jsonl", "eva", "no tokenizer of eva")]
)
def test_no_tokenizer(path: str, family: str, message: str, source: Path) -> None:
    with pytest.raises(VocabularyError, match=message):
        TokenizerPlace(str(source.parent / path), family).open()


def test_tokenizers_of_transformers() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"春": 0, "天": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    assert encode(tokenizer, ["春天", "", "天"]) == [[0, 1], [], [1]]
    assert encode(tokenizer, []) == []
