"""Readers of records, sources and rating keys: a value of any other type is read or refused with one message."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from hanmo.data.prepare.sources import SOURCES
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.errors import HanmoError
from hanmo.evaluation import human
from hanmo.generation.prompts import read_prompts
from hanmo.records import iter_records
from hanmo.records.reading import Reply
from tests.unit.strange import variants

USER, ASSISTANT = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "嗨"}
TALK = {"messages": [USER, ASSISTANT]}
ALPACA = {"instruction": "问", "input": "文", "output": "答", "history": [["一", "二"]], "system": "人"}
RECORDS: list[dict[str, Any]] = [
    TALK,
    ALPACA,
    {"text": "你好"},
    {"turns": ["你好", "嗨"]},
    {"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "嗨"}]},
    {"prompt": "问", "response": "答", "prefix": "", "system": "人"},
    {"prompt": "问", "response": "答", "label": False},
    {"prompt": "问", "answers": [{"answer": "好", "score": 1}, {"answer": "差", "score": 0}], "history": ["早"]},
    {"prompt": "问", "chosen": "好", "rejected": "差"},
    {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "差"}]},
    {"prompt": [USER], "chosen": [ASSISTANT], "rejected": "差"},
]
ENTRIES: dict[str, Any] = {
    "weibo": {"article": "文", "abstract": "要", "comments": [["评", 1], {"text": "论", "likes": 2}]},
    "baike": {"title": "题", "desc": "述", "answer": "答"},
    "alpaca": ALPACA,
    "sharegpt": TALK,
    "dpo": RECORDS[-3],
    "kdconv": [{"messages": [{"message": "你好"}, {"message": "嗨"}]}],
    "lccc": [["你好", "嗨"]],
    "crosswoz": {"1": {"messages": [{"content": "你好"}, {"content": "嗨"}]}},
    "poetry": [{"author": "李白", "title": "静夜思", "paragraphs": ["床前明月光，疑是地上霜。"]}],
    "zhihu": {"q_title": "题", "q-content": "述", "user-signature": "人", "ans-content": "答", "ans-up-num": 3},
    "zhidao-threads": {
        "title": "题", "content": "述", "best_answer": {"content": "好"}, "other_answers": [{"content": "差"}],
    },
    "encyclopedia": {"title": "题", "abstract": "要", "content": "文"},
    "wikipedia": {"text": "文"},
    "news": ["题", "<p>文</p>"],
    "wudao": {"title": "题", "content": "文", "dataType": "百科"},
    "wikipedia-sections": {"key": ["题"], "content": ["文"]},
}  # fmt: skip


@pytest.mark.parametrize("record", RECORDS)
def test_records_and_prompts(record: dict[str, Any], tmp_path: Path) -> None:
    path, refused = tmp_path / "data.jsonl", 0
    for value in variants(record):
        path.write_text(json.dumps(value) + "\n", encoding="utf-8")
        for reply in get_args(Reply):
            try:
                list(iter_records(path, reply=reply))
            except HanmoError as error:
                refused += str(error).startswith(f"{path}:1: ")
        try:
            list(read_prompts(path))
        except HanmoError as error:
            assert str(error).startswith(f"{path}")
    assert refused


@pytest.mark.parametrize("name", ENTRIES)
def test_sources(name: str, tmp_path: Path) -> None:
    path, refused = tmp_path / ("poet.tang.1.json" if name == "poetry" else "dev.json"), 0
    for value in variants(ENTRIES[name]):
        path.write_text(json.dumps(value) + "\n", encoding="utf-8")
        try:
            list(SOURCES[name](path, SourceReader()))
        except HanmoError as error:
            refused += str(error).startswith(str(path))
    assert refused


@pytest.mark.parametrize("key", variants({"0001": {"system": "甲", "question": "问"}}))
def test_the_key_of_rating_sheets(key: Any, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text(json.dumps(key), encoding="utf-8")
    rows = [",".join(human.COLUMNS), ",".join(["0001", *["1"] * (len(human.COLUMNS) - 1)])]
    (tmp_path / "rater1.csv").write_text("\n".join(rows), encoding="utf-8")
    try:
        assert human.score([tmp_path / "rater1.csv"], tmp_path / "key.json").answers == 1
    except HanmoError as error:
        assert str(tmp_path) in str(error)
