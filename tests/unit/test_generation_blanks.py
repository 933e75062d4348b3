"""Several blanks of one text are filled from left to right, each seeing the answers before it."""

from pathlib import Path
from typing import Any

import pytest

from hanmo.generation.decode import Generation, fill, generate
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.records import Text
from hanmo.rows import Context
from tests.unit.tiny import tiny, tiny_eva

GREEDY = Settings(do_sample=False, max_new_tokens=4)


def test_blanks_of_several_texts(tmp_path: Path) -> None:
    opened = tiny("glm", tmp_path)
    texts = ("今天[MASK]明天[MASK]再见", "你好[gMASK]", "[sMASK]三加五[MASK]等于[MASK]")
    contexts = [opened.family.context(Text(text), 64) for text in texts]
    together = fill(opened, contexts, GREEDY)
    assert [len(answers) for answers in together] == [2, 1, 3]
    sop = opened.family.config.sop_token_id
    for context, answers in zip(contexts, together, strict=True):
        ids = context.ids
        for answer in answers:
            (alone,) = generate(opened, [Context(ids, ids)], GREEDY)
            assert alone.ids == answer.ids
            ids = (*ids, sop, *answer.ids)


def test_every_blank_of_every_text_has_draws_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = tiny("glm", tmp_path)
    drawn: list[list[Place]] = []

    def recorded(*given: Any, places: list[Place], **others: Any) -> list[Generation]:
        drawn.append(places)
        return generate(*given, places=places, **others)

    monkeypatch.setattr("hanmo.generation.decode.generate", recorded)
    texts = ("你好[MASK]", "今天[MASK]明天[MASK]再见")
    fill(opened, [opened.family.context(Text(text), 64) for text in texts], GREEDY, first=5)
    assert drawn == [[Place(5, 0, 0), Place(6, 0, 0)], [Place(6, 0, 1)]]


def test_families_without_blanks_answer_once() -> None:
    opened = tiny_eva()
    context = Context((20, 21), (20, 21))
    assert fill(opened, [context], GREEDY) == [generate(opened, [context], GREEDY)]
