"""Ten opening messages for the demo's model, with hand-written rules for fitting replies.

A reply fits if it holds one of the expected expressions and none that contradicts it. Wording is free: a model may
answer in other words than its training data; a reply that merely sounds good does not fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Opening:
    """The user's first message, and which replies fit.

    Attributes:
        expects: regular expressions of which one must be found in the reply.
        forbids: regular expressions of which none may be found.
        means: what fits, in words.
    """

    prompt: str
    means: str
    expects: tuple[str, ...]
    forbids: tuple[str, ...] = ()

    def fits(self, reply: str) -> bool:
        """Whether the reply is short (at most 40 characters), expected and not forbidden."""
        return (
            len(reply) <= 40
            and any(re.search(pattern, reply) for pattern in self.expects)
            and not any(re.search(pattern, reply) for pattern in self.forbids)
        )


OPENINGS = (
    Opening(
        "你好",
        "a greeting in return",
        (r"^(你|您)好", r"^(嗨|欢迎|很高兴)"),
        (r"再见", r"[零一二三四五六七八九十]+[点号]"),
    ),
    Opening("早上好！", "a morning's greeting in return", (r"^(早|你好|您好)",), (r"晚上|下午|中午|晚安",)),
    Opening("你叫什么名字？", "its name, 小翰", (r"我(是|叫)小翰|小翰",)),
    Opening(
        "我叫小明。",
        "the user's name, and nobody else's",
        (r"小明",),
        (r"小(?![明翰])[\u4e00-\u9fff]|老[王李张刘]", r"再见"),
    ),
    Opening("今天星期三，明天星期几？", "星期四", (r"星期四|周四|^四",), (r"星期[一二五六日]",)),
    Opening("三加五等于几？", "八", (r"(等于|是|^)八[。!]?$",)),
    Opening("大的反义词是什么？", "小", (r"(是|^)小[。!]?$",), (r"(?<!大)的反义词",)),
    Opening("北京有什么好玩的？", "a sight of Beijing", (r"故宫|长城|天坛|颐和园|天安门",)),
    Opening("谢谢你！", "an answer to thanks", (r"不客气|不用谢|不谢|没关系|应该的",)),
    Opening("再见！", "a farewell", (r"再见|拜拜|明天见|回头见|下次|再来",)),
)
