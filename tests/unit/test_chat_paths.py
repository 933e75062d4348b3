"""From messages to ids: one way for chat, prompts of a file, training, rollouts and evaluation, in every family."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hanmo.evaluation.dialogue
import hanmo.generation.chat
from hanmo.evaluation.suites.prompting import FewShotPrefix
from hanmo.families.base import OpenedModel
from hanmo.generation.beam import Generation
from hanmo.generation.chat import ChatSession
from hanmo.generation.prompts import as_context, read_prompts
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, iter_records
from hanmo.training.rl.rollout import question
from tests.unit.chat_templates import ANSWER, ASKED, CASES, MARKS, NEXT, QWEN3, REPLY, SAID, SYSTEM, TALK, chatting
from tests.unit.tiny import tiny

LIMIT = 512
GREEDY = Settings(max_new_tokens=4, do_sample=False, rule_files=False)
Talk = tuple[str, ...]  # the system text and three turns
OWN = (SYSTEM, ASKED, SAID, NEXT)
Way = Callable[[OpenedModel, Talk, Path, pytest.MonkeyPatch], tuple[int, ...]]


def answering(*replies: tuple[int, ...]) -> Callable[..., list[Generation]]:
    """In place of the decode loop: these ids, one reply after the other."""
    left = iter(replies)
    return lambda opened, contexts, settings, *_, **__: [Generation(next(left), (), 0.0, True) for _ in contexts]


def messages(system: str, *turns: str) -> list[dict[str, str]]:
    said = [{"role": "user" if place % 2 == 0 else "assistant", "content": turn} for place, turn in enumerate(turns)]
    return [*([{"role": "system", "content": system}] if system else []), *said]


def written(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def chat(opened: OpenedModel, talk: Talk, folder: Path, patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """The model has said the reply of ``talk``; it is kept as the ids that it drew."""
    system, asked, said, further = talk
    reply = tuple(opened.family.encode(said))
    patch.setattr(hanmo.generation.chat, "generate", answering(reply, ()))
    session = ChatSession(opened, GREEDY, LIMIT, system)
    assert session.reply(asked).ids == reply
    return session.reply(further).context.ids


def prompts(opened: OpenedModel, talk: Talk, folder: Path, patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    [(_, record)] = read_prompts(written(folder / "prompts.jsonl", {"messages": messages(*talk)}))
    return as_context(opened, record, LIMIT).ids


def training(opened: OpenedModel, talk: Talk, folder: Path, patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    [record] = iter_records(written(folder / "train.jsonl", {"messages": messages(*talk, ANSWER)}))
    [parts] = opened.family.parts(record, LIMIT)
    assert [id_ for part in parts if part.scored for id_ in part.ids] == opened.family.encode(ANSWER)
    return tuple(id_ for part in parts if not part.scored for id_ in part.ids)


def rollouts(opened: OpenedModel, talk: Talk, folder: Path, patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    [record] = iter_records(written(folder / "rl.jsonl", {"messages": messages(*talk, ANSWER)}))
    return question(record, opened, LIMIT).context.ids


def evaluation(opened: OpenedModel, talk: Talk, folder: Path, patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    seen = []

    def generate(opened: OpenedModel, contexts: list[Any], *_: Any, **__: Any) -> list[Generation]:
        seen.extend(context.ids for context in contexts)
        return [Generation((), (), 0.0, True) for _ in contexts]

    patch.setattr(hanmo.evaluation.dialogue, "generate", generate)
    [record] = iter_records(written(folder / "test.jsonl", {"messages": messages(*talk, ANSWER)}))
    hanmo.evaluation.dialogue.evaluate(opened, [record], GREEDY, LIMIT, LIMIT)
    return tuple(seen[0])


WAYS: dict[str, Way] = {way.__name__: way for way in (chat, prompts, training, rollouts, evaluation)}


@pytest.mark.parametrize("name", CASES)
def test_every_way_makes_the_ids_of_the_template(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the text written down here, which are those of plain transformers; a reply keeps its own reasoning
    where the template keeps it, and loses it where the template drops it.
    """
    case = CASES[name]
    opened = chatting(case.template)
    words = opened.tokenizer
    opened = replace(opened, family=opened.family.with_template(case.arguments))
    said = messages(case.system, *TALK)
    plain = words.apply_chat_template(
        said, tokenize=True, return_dict=False, add_generation_prompt=True, **case.arguments
    )
    expected = words.encode(case.prompt, add_special_tokens=False)
    assert words.decode(expected) == case.prompt and list(plain) == expected
    assert {
        way: list(find(opened, (case.system, *TALK), tmp_path, monkeypatch)) for way, find in WAYS.items()
    } == dict.fromkeys(WAYS, expected)
    assert opened.family.stop_id == words.convert_tokens_to_ids(case.end)


@pytest.mark.parametrize("name", CASES)
def test_a_question_with_candidates_is_the_same_conversation(name: str) -> None:
    case = CASES[name]
    family = chatting(case.template).family.with_template(case.arguments)
    shots = FewShotPrefix(shots=((ASKED, REPLY),), chat=True)
    [candidate] = shots.candidates(family, NEXT, [ANSWER])
    turns = Dialogue(TALK)
    assert [id_ for part in candidate for id_ in part.ids] == [
        *family.context(turns, LIMIT).ids,
        *family.encode(ANSWER),
    ]


def test_a_system_text_of_a_template_without_the_role_opens_the_first_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, case = chatting(CASES["gemma"].template), CASES["gemma"]
    expected = opened.tokenizer.encode(case.prompt.replace(ASKED, f"{SYSTEM}\n\n{ASKED}"), add_special_tokens=False)
    with pytest.warns(UserWarning, match="no system role"):
        found = {way: list(find(opened, (SYSTEM, *TALK), tmp_path, monkeypatch)) for way, find in WAYS.items()}
    assert found == dict.fromkeys(WAYS, expected)


def own_ids(opened: OpenedModel) -> list[int]:
    """The conversation as each family's original has it: turns by lines, or turns with a token behind each."""
    words, encode = opened.tokenizer, opened.family.encode
    lines = encode("\n".join(OWN))
    if opened.family.name == "eva":
        return [id_ for turn in OWN for id_ in (*encode(turn), words.sep_token_id)]
    if opened.family.name == "pangu":
        return [words.bos_token_id, *lines, words.sep_token_id]
    if opened.family.name == "glm":
        return [words.cls_token_id, *lines, words.sep_token_id, *encode("[MASK]"), words.eos_token_id]
    return lines


@pytest.mark.parametrize("name", ["eva", "pangu", "glm", "transformer_xl"])
def test_every_way_makes_the_same_ids_in_our_families(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tiny(name, tmp_path)
    found = {way: list(find(opened, OWN, tmp_path, monkeypatch)) for way, find in WAYS.items()}
    assert found == dict.fromkeys(WAYS, own_ids(opened))


@pytest.mark.parametrize("special", [False, True])
def test_reasoning_of_an_earlier_turn_is_dropped_though_the_chat_keeps_its_ids(
    monkeypatch: pytest.MonkeyPatch, special: bool
) -> None:
    """Qwen3's template drops it: the second prompt is that of a model which never thought. Special tokens are not part of
    the reply's text, but the template sees them.
    """
    opened = chatting(QWEN3, special)
    assert opened.family.decode(opened.family.encode(REPLY)).startswith("<think>") is not special
    drawn = tuple(opened.family.encode(REPLY)), tuple(opened.family.encode(SAID))
    seen = []
    for reply in drawn:
        monkeypatch.setattr(hanmo.generation.chat, "generate", answering(reply, ()))
        session = ChatSession(opened, GREEDY, LIMIT)
        assert session.reply(ASKED).text == opened.family.decode(reply)
        seen.append(session.reply(NEXT).context.ids)
    assert drawn[0] != drawn[1] and seen[0] == seen[1]
    assert opened.tokenizer.convert_tokens_to_ids("</think>") not in seen[0]
    assert not set(MARKS[2:]).intersection(opened.tokenizer.convert_ids_to_tokens(list(seen[0])))
