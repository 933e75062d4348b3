from random import Random

import pytest

from hanmo.demo.corpus import build
from hanmo.demo.corpus.template import Exchange
from hanmo.demo.manners import asks, pairs, question_after


def exchange(topic, *turns):
    return Exchange(topic, turns, held_out=False)


def test_talk_is_better_with_a_question_and_a_fact_without():
    travel = exchange("travel 旅行", "北京有什么好玩的？", "故宫很有名，一定要去看看。")
    sum_ = exchange("arithmetic 算术", "三加五等于几？", "等于八。")
    asking, plain = pairs([travel, sum_], Random(0))
    assert (
        asking.chosen == "故宫很有名，一定要去看看。你想去吗？" and asking.rejected == travel.turns[1] and asking.asks
    )
    assert (
        plain.chosen == "等于八。" and plain.rejected.startswith("等于八。") and asks(plain.rejected) and not plain.asks
    )
    assert asking.as_dict() == {"prompt": ["北京有什么好玩的？"], "chosen": asking.chosen, "rejected": asking.rejected}


def test_a_reply_that_no_rule_knows_makes_no_pair():
    assert pairs([exchange("food 饮食", "我要一份面条。", "好的，您想喝点什么？")], Random(0)) == []


@pytest.mark.parametrize(
    "topic, reply",
    [
        ("courtesy 礼貌", "再见，欢迎再来聊天！"),
        ("greetings 问候", "晚安！做个好梦。"),
        ("weather 天气", "我不能上网，不知道西安现在的天气。"),
        ("memory 记住前文", "你叫小红。"),
    ],
)
def test_nothing_is_asked_where_it_would_be_odd(topic, reply):
    assert question_after(topic, reply) is None


def test_pairs_of_the_corpus_are_one_reply_with_and_without_a_question():
    found = pairs(build.conversations(2000, Random(1)), Random(2))
    assert {pair.asks for pair in found} == {True, False}
    for pair in found:
        longer, shorter = (pair.chosen, pair.rejected) if pair.asks else (pair.rejected, pair.chosen)
        assert longer.startswith(shorter) and asks(longer) and not asks(shorter)
