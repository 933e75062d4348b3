import hashlib
import importlib.metadata
import json
from collections import Counter
from random import Random

import pytest
from typer.testing import CliRunner

from hanmo.cli import app
from hanmo.demo.corpus import build
from hanmo.demo.corpus.derive import numeral
from hanmo.demo.corpus.template import HELD_OUT, TEMPLATES, Template
from hanmo.errors import UnsupportedError
from hanmo.records import iter_records

END_MARKS = str.maketrans("", "", "。？！")


@pytest.fixture(scope="module")
def built() -> build.Corpus:
    return build.build(size=20_000, seed=0)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "零"),
        (9, "九"),
        (10, "十"),
        (11, "十一"),
        (20, "二十"),
        (99, "九十九"),
        (100, "一百"),
        (105, "一百零五"),
        (110, "一百一十"),
        (119, "一百一十九"),
        (320, "三百二十"),
    ],
)
def test_numerals_as_spoken(number, words):
    assert numeral(number) == words


def test_the_seed_decides_everything(built):
    again = build.build(size=300, seed=3)
    assert again == build.build(size=300, seed=3)
    assert again.train != build.build(size=300, seed=4).train
    assert set(built.held_out) == set(again.held_out)


@pytest.mark.parametrize(
    ("seed", "sha256"),
    [
        (0, "addd5069d245cdb16b99ad40f124ba0ff3c78abedde53a2813991f50b2718aeb"),
        (7, "237992d6d9d678a706ca35f1c3868fe60021501bf0c54a7f71fa43527006761b"),
    ],
)
def test_composed_dialogues_stay_the_same_to_the_byte(seed, sha256):
    """The values were computed when words and templates were Python; a changed word or template changes them."""
    held_out = build.build(1, seed, 24, 0).held_out.values()
    turns = [exchange.turns for exchange in build.conversations(2000, Random(f"train {seed}"))]
    turns += [dialogue.turns for dialogues in held_out for dialogue in dialogues]
    assert hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest() == sha256


def bare(turns) -> str:
    return "|".join(turns).translate(END_MARKS)


def test_no_held_out_exchange_is_trained_on(built):
    """Fails if a template's combination leaves out a slot that changes its words, or if two templates say the same."""
    trained = {bare(turns[-count:]) for turns in (d.turns for d in built.train) for count in (2, 4, 6, 8)}
    for topic, dialogues in built.held_out.items():
        for dialogue in dialogues:
            assert bare(dialogue.turns) not in trained, topic


def test_held_out_does_not_depend_on_the_seed(built):
    other = build.build(size=20_000, seed=1)
    trained = {bare(dialogue.turns) for dialogue in other.train}
    assert not trained & {bare(dialogue.turns) for found in built.held_out.values() for dialogue in found}


def test_about_one_combination_in_eight_is_held_out():
    template = next(template for template in TEMPLATES if template.combination == ("a", "b", "c", "d", "e"))
    rng = Random(0)
    share = sum(template.draw(rng).held_out for _ in range(4000)) / 4000
    assert abs(share - 1 / HELD_OUT) < 0.03


def test_every_topic_has_held_out_dialogues(built):
    assert all(len(dialogues) > 5 for dialogues in built.held_out.values()), Counter(
        {topic: len(dialogues) for topic, dialogues in built.held_out.items()}
    )


def test_dialogues_are_well_formed(built):
    for dialogue in built.train:
        assert 2 <= len(dialogue.turns) <= build.LONGEST
        assert all(turn and "{" not in turn and "|" not in turn for turn in dialogue.turns)


@pytest.mark.parametrize(
    ("topic", "question", "answer"),
    [
        ("arithmetic", "三加五等于几？", "等于八。"),
        ("dates", "今天星期六，后天星期几？", "星期一。"),
        ("dates", "现在十一点，三个小时以后几点？", "二点。"),
        ("seasons", "三月是什么季节？", "是春天。"),
        ("seasons", "十二月是什么季节？", "是冬天。"),
        ("seasons", "十二生肖里猪后面是什么？", "是鼠。"),
        ("dates", "今天三月五号，明天几号？", "明天三月六号。"),
        ("shopping", "苹果五块钱一斤，买三斤多少钱？", "一共十五块钱。"),
        ("reasoning", "大象比老鼠大吗？", "对，大象比老鼠大。"),
        ("couplets", "春风对什么？", "秋雨。"),
    ],
)
def test_answers_worked_out_by_hand(topic, question, answer):
    """The template that can say the question gives this answer, whichever set the combination falls into."""
    rng = Random(0)
    templates = [template for template in TEMPLATES if template.topic.startswith(topic)]
    for _ in range(100_000):
        turns = rng.choice(templates).draw(rng).turns
        if turns[-2] == question:
            assert turns[-1] == answer
            return
    pytest.fail(f"{question} is never said")


def test_a_choice_that_makes_no_sense_is_drawn_again():
    template = Template("t", ("{a}|{b}",), {"a": (1, 2), "b": (1, 2)}, lambda a, b: {} if a < b else None)
    assert template.draw(Random(0)).turns == ("1", "2")


def test_collected_dialogues_are_short_and_distinct():
    dialogues = build.collected_dialogues(longest=20)
    assert len(dialogues) > 100 and len(set(dialogues)) == len(dialogues)
    assert max(len(turn) for dialogue in dialogues for turn in dialogue.turns) <= 20
    assert any(dialogue.turns == ("你好", "嗨") for dialogue in dialogues)


def test_the_command_writes_what_the_report_of_it_says(tmp_path):
    run = CliRunner().invoke(app, ["data", "corpus", str(tmp_path), "--size", "50", "--per-topic", "2", "--json"])
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    train, valid = list(iter_records(tmp_path / "train.jsonl")), list(iter_records(tmp_path / "valid.jsonl"))
    assert (len(train), len(valid)) == (said["train_dialogues"], said["valid_dialogues"])
    assert sum(said["topics"].values()) == len(valid) and set(said["topics"].values()) == {2}
    assert train == build.build(50, 0, 2).train


def test_without_the_collected_dialogues_the_message_says_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(UnsupportedError, match=r"chatterbot-corpus.*pip install"):
        build.collected_dialogues()
