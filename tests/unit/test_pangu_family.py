"""What PanGu-α is shown of a prompt that is too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanmo.families.base import Family
from hanmo.records import Dialogue, PromptResponse
from tests.unit.tiny import tiny

LIMIT = 12


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return tiny("pangu", tmp_path).family


def test_of_a_dialogue_the_last_words_are_seen(family: Family) -> None:
    """What the user has said last is what is to be answered; the same in training and in a chat."""
    talk = Dialogue(("你好吗", "我很好", "今天天气真不错", "明天去哪里玩", "好"))
    whole = family.context(Dialogue(talk.turns[:-1]), 1000).ids
    seen = family.context(Dialogue(talk.turns[:-1]), LIMIT).ids
    assert len(seen) == LIMIT
    assert (seen[0], seen[-1]) == (whole[0], whole[-1]) and seen[1:] == whole[1 - LIMIT :]
    ((given, _),) = family.parts(talk, LIMIT)
    assert given.ids[0] == whole[0] and given.ids[1:] == whole[1 - len(given.ids) :]


def test_of_a_prompt_the_beginning_is_seen(family: Family) -> None:
    """As published."""
    pair = PromptResponse("今天天气真不错明天去哪里玩谢谢再见三加五等于几北京", "好")
    whole, seen = family.context(pair, 1000).ids, family.context(pair, LIMIT).ids
    assert len(whole) > LIMIT == len(seen)
    assert seen[:-1] == whole[: LIMIT - 1] and seen[-1] == whole[-1]
    ((given, _),) = family.parts(pair, LIMIT)
    assert given.ids[:-1] == whole[: len(given.ids) - 1]
