"""Preference pairs: replies that ask back where people do, and answers of fact to which nothing is added.

The corpus only answers, so fine-tuning has not taught this. A pair is the same reply with and without a question, so
that a person sees which one is preferred.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from hanmo.demo.corpus.template import Exchange

# topic, what the reply is like, what to ask after it
_ASKING = tuple(
    (topic, re.compile(reply), question)
    for topic, reply, question in (
        ("names 名字", r"", "今天过得好吗？"),
        ("memory 记住前文", r"^[^，]+，你好！$|你好，我叫小翰。$", "今天过得好吗？"),
        ("memory 记住前文", r"(一定很可爱|真好听)。$", "几岁了？"),
        ("greetings 问候", r"^(早|上午|中午|下午)", "今天有什么打算？"),
        ("weather 天气", r"^(?!我不能上网)", "你要出门吗？"),
        ("feelings 心情", r"也为你高兴|^(别|深呼吸|有我陪你)", "想和我说说吗？"),
        ("hobbies 爱好", r"^我不会.*喜欢听你说", "喜欢多久了？"),
        ("hobbies 爱好", r"^我不会.*只会聊天", "你会吗？"),
        ("hobbies 爱好", r"^真好，.*很有意思", "你和谁一起去？"),
        ("jobs 职业", r"啊，", "忙不忙？"),
        ("jobs 职业", r"很好，", "准备得怎么样了？"),
        ("travel 旅行", r"一定要去看看", "你想去吗？"),
        ("travel 旅行", r"一定要尝尝|最有名", "你想尝尝吗？"),
        ("travel 旅行", r"^好啊，.*很有名|祝你玩得开心", "你和谁一起去？"),
        ("food 饮食", r"^都不错|^我想吃", "你呢？"),
        ("self 自我介绍", r"^我叫小翰", "怎么称呼你？"),
        ("self 自我介绍", r"几分钟大|电脑里|墨色|对对子。$|只会说中文", "你呢？"),
        ("small talk 闲聊", r"虽然我吃不到", "你呢？"),
        ("courtesy 礼貌", r"很高兴", "今天过得好吗？"),
    )
)
_QUESTIONS = tuple(dict.fromkeys(question for _, _, question in _ASKING))

# topics of which the reply is best left as it is, where no rule above applies
_PLAIN = (
    "arithmetic 算术", "numbers 数的比较", "dates 日期", "seasons 时令", "couplets 对联", "poems 诗句",
    "opposites 反义词", "measure words 量词", "colours 颜色", "capitals 省会首都", "reasoning 推理", "courtesy 礼貌",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """The turns of a dialogue, and its reply with and without a question at the end.

    Attributes:
        asks: whether the better reply is the one that asks.
    """

    context: tuple[str, ...]
    chosen: str
    rejected: str
    asks: bool

    def as_dict(self) -> dict[str, object]:
        """For a file of preferences."""
        return {"prompt": list(self.context), "chosen": self.chosen, "rejected": self.rejected}


def question_after(topic: str, reply: str) -> str | None:
    """What it is natural to ask after this reply."""
    return next((question for named, form, question in _ASKING if named == topic and form.search(reply)), None)


def pairs(exchanges: Iterable[Exchange], draw: Random) -> list[Pair]:
    """A pair for each exchange with a reply that a rule knows; the others are left out.

    A question that would be too much is drawn from those that are right elsewhere.
    """
    found = []
    for exchange in exchanges:
        *context, reply = exchange.turns
        question = question_after(exchange.topic, reply)
        if question:
            found.append(Pair(tuple(context), reply + question, reply, True))
        elif exchange.topic in _PLAIN:
            found.append(Pair(tuple(context), reply, reply + draw.choice(_QUESTIONS), False))
    return found


def asks(reply: str) -> bool:
    """Whether a reply ends by asking; the model's question marks are narrow ones."""
    return reply.endswith(("？", "?"))
