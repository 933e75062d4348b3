"""Splits by content, and contamination between them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.data.prepare.contamination import find_contamination
from hanmo.data.prepare.normalisation import normalised, text_hash
from hanmo.data.prepare.splits import Shares
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
    assert text_hash(other) == text_hash("你好世界")


def test_texts_of_marks_alone_still_differ() -> None:
    assert normalised("？？") != normalised("！！")
    assert text_hash("？？") != text_hash("！！")


def _file(folder: Path, name: str, records: list[Record]) -> Path:
    write_records(folder / name, records)
    return folder / name


TRAIN: list[Record] = [
    PromptResponse(f"第{n}个问题怎么回答才好", f"这是第{n}个问题的一个很长的回答") for n in range(50)
]


def test_no_contamination_where_there_is_none(tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", TRAIN)
    test = _file(tmp_path, "test.jsonl", [PromptResponse("完全不同的提问内容", "没有关系的话，谁也没有说过")])
    found = find_contamination([train], [test])
    assert (found.held_out, found.train, found.found) == (1, 50, [])


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (PromptResponse("第7个问题怎么回答才好？", "别的"), "prompt"),
        (PromptResponse("别的提问", "这是第7个问题的一个很长的回答"), "answer"),
        (ScoredAnswers("第7个问题，怎么回答才好", (("甲", 1.0), ("乙", 0.0))), "prompt"),
    ],
)
def test_planted_overlap_is_found_with_both_places(record: Record, kind: str, tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", TRAIN)
    clean = PromptResponse("完全不同的提问内容", "没有关系的话，谁也没有说过")
    test = _file(tmp_path, "test.jsonl", [clean, record])
    (overlap,) = find_contamination([train], [test]).found
    assert (overlap.kind, overlap.where, overlap.train) == (kind, f"{test}:2", f"{train}:8")


def test_nearly_the_same_record_is_found(tmp_path: Path) -> None:
    text = "春天来了，万物复苏，小草从泥土里探出头来，河边的柳树也抽出了嫩绿的新芽，孩子们在田野里奔跑嬉戏。"
    train = _file(
        tmp_path, "train.jsonl", [Text("别的一段文字，讲的是另外一件事情。"), Text(text.replace("小草", "嫩草"))]
    )
    test = _file(tmp_path, "test.jsonl", [Text(text)])
    (overlap,) = find_contamination([train], [test]).found
    assert overlap.kind == "nearly the same" and overlap.train == f"{train}:2" and 0.8 <= overlap.similarity < 1
    assert find_contamination([train], [test], near=None).found == []


def test_a_wrong_answer_in_training_is_contamination(tmp_path: Path) -> None:
    answer = "不尽长江滚滚来，无边落木萧萧下"
    train = _file(tmp_path, "train.jsonl", [ScoredAnswers("上联：某", (("某某", 1.0), (answer, -1.0)))])
    test = _file(tmp_path, "test.jsonl", [ScoredAnswers("上联：另", ((answer, 1.0), ("某某", 0.0)))])
    assert [overlap.kind for overlap in find_contamination([train], [test]).found] == ["answer"]


def test_short_answers_come_again_without_being_contamination(tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", [Dialogue(("今天吃什么", "好的"))])
    test = _file(tmp_path, "test.jsonl", [Dialogue(("明天几点起床", "好的"))])
    assert find_contamination([train], [test]).found == []


QUESTION, REPLY = "春天的夜里为什么常常下雨呢", "因为冷空气和暖空气在这时相遇"
ASKED: list[Record] = [
    PromptResponse(QUESTION, "答案另说"),
    Dialogue((QUESTION, "答案另说")),
    Dialogue(("你在忙什么", "没什么", QUESTION, "答案另说")),
    ScoredAnswers(QUESTION, (("答案另说", 1.0),), history=("你在忙什么", "没什么")),
]
LEARNED: list[tuple[Record, str]] = [
    (PromptResponse(QUESTION + "？", "不一样的回答"), "asked"),
    (Dialogue((QUESTION, "不一样的回答")), "asked"),
    (Dialogue(("我想问一件事", "请说", QUESTION, "不一样的回答")), "another turn"),
    (Dialogue((QUESTION, "不一样的回答", "谢谢", "不客气")), "another turn"),
    (ScoredAnswers("写一个关于天气的问题", (("好", 1.0), (QUESTION, 0.0))), "another turn"),
    (Dialogue(("写一个关于天气的问题", QUESTION)), "another turn"),
    (Text(f"书上写道：“{QUESTION}？”没有人知道。"), "inside"),
    (PromptResponse(f"请回答下面的问题。{QUESTION}？", "不一样的回答"), "inside"),
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda record: type(record).__name__)
@pytest.mark.parametrize(("learned", "form"), LEARNED)
def test_a_question_is_found_in_every_form_of_record(asked: Record, learned: Record, form: str, tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", [*TRAIN, learned, *TRAIN[:3]])
    (overlap,) = find_contamination([train], [_file(tmp_path, "test.jsonl", [asked])], near=None).found
    alone = isinstance(asked, PromptResponse) or (isinstance(asked, Dialogue) and len(asked.turns) == 2)
    expected = ("the same" if alone else "another turn") if form == "asked" else form
    assert (overlap.train, overlap.form, overlap.text) == (f"{train}:51", expected, QUESTION)


@pytest.mark.parametrize(
    ("learned", "form"),
    [
        (PromptResponse("另一个提问", REPLY), "the same"),
        (PromptResponse(REPLY, "为什么这样说"), "another turn"),
        (Dialogue(("说一句话", REPLY, "为什么这样说", "不知道")), "another turn"),
        (Text(f"我们都知道，{REPLY}。后来就下雨了。"), "inside"),
    ],
)
def test_an_answer_is_found_on_the_other_side_and_inside(learned: Record, form: str, tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", [*TRAIN, learned])
    test = _file(tmp_path, "test.jsonl", [PromptResponse("完全不同的提问", REPLY)])
    (overlap,) = find_contamination([train], [test], near=None).found
    assert (overlap.kind, overlap.train, overlap.form) == ("answer", f"{train}:51", form)


def test_the_context_of_a_reply_is_found_in_a_dialogue_that_goes_on(tmp_path: Path) -> None:
    turns = ("今天想吃点什么呀", "想吃火锅", "那我们几点去", "六点", "好的", "到时候见")
    train = _file(tmp_path, "train.jsonl", [Dialogue(turns)])
    test = _file(tmp_path, "test.jsonl", [Dialogue((*turns[:3], "七点"))])
    (overlap,) = find_contamination([train], [test], near=None).found
    assert (overlap.kind, overlap.form) == ("context", "inside")


def test_short_questions_come_again_in_dialogues_without_being_contamination(tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", [Dialogue(("我要走了", "为什么呢", "有事", "好")), Text("他问我为什么呢。")])
    test = _file(tmp_path, "test.jsonl", [Dialogue(("我不去", "随你", "为什么呢", "没空"))])
    assert find_contamination([train], [test], near=None).found == []


def test_many_texts_are_found_across_the_borders_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmo.data.prepare.contamination.BATCH", 100)
    monkeypatch.setattr("hanmo.data.prepare.passages._BLOCK", 16)
    lines = [f"第{n}章讲的是一个名叫{n:04d}的人的故事" for n in range(200)]
    train = _file(tmp_path, "train.jsonl", [Text("。".join(lines[n : n + 10])) for n in range(0, 200, 10)])
    test = _file(tmp_path, "test.jsonl", [PromptResponse(line, "好") for line in lines[::7]])
    contamination = find_contamination([train], [test], near=None)
    assert [overlap.train for overlap in contamination.found] == [f"{train}:{n // 10 + 1}" for n in range(0, 200, 7)]


@pytest.mark.parametrize(
    ("held_out", "learned"),
    [
        (".5元一斤的苹果买了六斤一共多少钱", "3.5元一斤的苹果买了六斤一共多少钱"),
        ("-5加上六再乘以七等于多少呢", "3-5加上六再乘以七等于多少呢"),
        ("六斤苹果一共要花多少元呢，是不是3", "六斤苹果一共要花多少元呢，是不是3.5"),
    ],
)
def test_what_is_cut_out_of_a_number_is_no_contamination(held_out: str, learned: str, tmp_path: Path) -> None:
    train = _file(tmp_path, "train.jsonl", [Text(f"老师问：{learned}？"), Text(f"老师问：{learned}")])
    test = _file(tmp_path, "test.jsonl", [PromptResponse(held_out, "好")])
    assert find_contamination([train], [test], near=None).found == []
    whole = _file(tmp_path, "whole.jsonl", [Text(f"老师问：{held_out}？")])
    assert [overlap.form for overlap in find_contamination([whole], [test], near=None).found] == ["inside"]
