"""Splits by content, and leaks between them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.data.leaks import find_leaks
from hanmo.data.splits import Shares, fingerprint, folded
from hanmo.errors import ConfigError
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text, write_records


def test_shares_are_kept() -> None:
    shares = Shares(0.1, 0.2)
    found = [shares.split(f"第{n}条") for n in range(5000)]
    assert abs(found.count("dev") / 5000 - 0.1) < 0.02
    assert abs(found.count("test") / 5000 - 0.2) < 0.02


def test_by_default_all_is_for_training() -> None:
    assert {Shares().split(str(n)) for n in range(100)} == {"train"}


@pytest.mark.parametrize(("dev", "test"), [(-0.1, 0.1), (0.5, 0.5), (0.0, 1.0)])
def test_impossible_shares(dev: float, test: float) -> None:
    with pytest.raises(ConfigError, match="below 1"):
        Shares(dev, test)


@given(st.text())
def test_a_larger_test_share_moves_nothing_out_of_the_test(text: str) -> None:
    assert Shares(0.0, 0.1).split(text) == "train" or Shares(0.1, 0.3).split(text) == "test"


@pytest.mark.parametrize("other", ["你好 世界", "你好，世界！", "　你好\n世界 "])
def test_white_space_and_punctuation_do_not_tell_texts_apart(other: str) -> None:
    assert fingerprint(other) == fingerprint("你好世界")


def test_texts_of_marks_alone_still_differ() -> None:
    assert folded("？？") != folded("！！")
    assert fingerprint("？？") != fingerprint("！！")


def _file(folder: Path, name: str, records: list[Record]) -> Path:
    write_records(folder / name, records)
    return folder / name


TRAIN: list[Record] = [
    PromptResponse(f"第{n}个问题怎么回答才好", f"这是第{n}个问题的一个很长的回答") for n in range(50)
]


def test_no_leaks_where_there_are_none(tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", TRAIN)
    test = _file(tmp_path, "test.jsonl", [PromptResponse("完全不同的提问内容", "没有关系的话，谁也没有说过")])
    found = find_leaks([train], [test])
    assert (found.held_out, found.learned, found.found) == (1, 50, [])


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (PromptResponse("第7个问题怎么回答才好？", "别的"), "prompt"),
        (PromptResponse("别的提问", "这是第7个问题的一个很长的回答"), "answer"),
        (ScoredAnswers("第7个问题，怎么回答才好", (("甲", 1.0), ("乙", 0.0))), "prompt"),
    ],
)
def test_planted_leak_is_found_with_both_places(record: Record, kind: str, tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", TRAIN)
    clean = PromptResponse("完全不同的提问内容", "没有关系的话，谁也没有说过")
    test = _file(tmp_path, "test.jsonl", [clean, record])
    (leak,) = find_leaks([train], [test]).found
    assert (leak.kind, leak.where, leak.learned) == (kind, f"{test}:2", f"{train}:8")


def test_nearly_the_same_record_is_found(tmp_path: Path) -> None:
    text = "春天来了，万物复苏，小草从泥土里探出头来，河边的柳树也抽出了嫩绿的新芽，孩子们在田野里奔跑嬉戏。"
    train = _file(tmp_path, "train.jsonl", [Text("别的一段文字，讲的是另外一件事情。"), Text(text + "真美！")])
    test = _file(tmp_path, "test.jsonl", [Text(text)])
    (leak,) = find_leaks([train], [test]).found
    assert leak.kind == "nearly the same" and leak.learned == f"{train}:2" and 0.8 <= leak.similarity < 1
    assert find_leaks([train], [test], near=None).found == []


def test_a_wrong_answer_in_training_is_a_leak(tmp_path: Path) -> None:
    answer = "不尽长江滚滚来，无边落木萧萧下"
    train = _file(tmp_path, "train.jsonl", [ScoredAnswers("上联：某", (("某某", 1.0), (answer, -1.0)))])
    test = _file(tmp_path, "test.jsonl", [ScoredAnswers("上联：另", ((answer, 1.0), ("某某", 0.0)))])
    assert [leak.kind for leak in find_leaks([train], [test]).found] == ["answer"]


def test_short_answers_come_again_without_being_leaks(tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", [Dialogue(("今天吃什么", "好的"))])
    test = _file(tmp_path, "test.jsonl", [Dialogue(("明天几点起床", "好的"))])
    assert find_leaks([train], [test]).found == []
