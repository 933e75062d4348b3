"""JSON values as records, recognised by their keys; see ``FORMS``."""

import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hanmo.records.types import Dialogue, PromptResponse, Record, ScoredAnswers, Text

FORMS = """one of
  {"turns" | "dialog" | "messages" | "conversations": [...]}, turns as text or as {"role", "content"} or {"from", "value"}
  {"instruction", "input", "output"}
  {"prompt", "response"}, {"prompt", "text"}, each with "prefix" and "system" if wanted
  either of the above with "label": true or false, a thumb for its reply
  {"prompt", "answers": [{"answer", "score"}, ...]}
  {"chosen", "rejected"} and "prompt", {"instruction", "input"} or {"conversations"}; answers as text or messages
  {"text"}"""
TURNS = ("turns", "dialog", "dialogue", "messages", "conversations", "conversation")
SIDES = ("chosen", "rejected")
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "client"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "counselor"), "assistant"),
    "system": "system",
}


def json_record(value: Any, where: str, waiting: bool = False) -> Record:
    """The record that a JSON value represents, see ``FORMS``; ValueError with the reason if it represents none.

    ``waiting``: a reply that is missing, as after messages that end with the user's, is "".
    """
    record = _unlabelled(value, where, waiting)
    label = value.get("label") if isinstance(value, dict) else None
    # A label that is neither is no thumb: data sets of other tasks call their classes so.
    if isinstance(label, bool) and isinstance(record, PromptResponse | Dialogue):
        return replace(record, label=label)
    return record


def _unlabelled(value: Any, where: str, waiting: bool) -> Record:
    if isinstance(value, list):
        return _dialogue(value, "", where, waiting)
    if not isinstance(value, dict):
        raise ValueError(f"found {type(value).__name__}, expected {FORMS}")
    if value.get("tools"):
        raise ValueError("'tools': a record cannot describe tools, so that they would be lost; leave them out")
    if "chosen" in value and "rejected" in value:
        return _preference(value, where)
    for key in TURNS:
        if isinstance(value.get(key), list):
            return _dialogue(value[key], text_at(value, "system", ""), where, waiting)
    if "instruction" in value:
        return _instruction({"output": "", **value} if waiting else value, where)
    if "prompt" in value:
        answered = {"answers", "response", "text", "completion"} & value.keys()
        return _prompt(value if answered or not waiting else {**value, "response": ""}, where)
    if "text" in value:
        return Text(text_at(value, "text"), where)
    raise ValueError(f"keys {', '.join(map(repr, value)) or 'none'}; expected {FORMS}")


def text_at(value: dict[str, Any], key: str, default: str | None = None) -> str:
    """The text under a key, or ``default`` where it is missing or null; a ValueError if it is anything else."""
    found = value.get(key, default)
    if found is None and default is not None:
        return default
    if not isinstance(found, str):
        raise ValueError(f"{key!r} must be text, found {'nothing' if found is None else type(found).__name__}")
    return found


def _dialogue(turns: list[Any], system: str, where: str, waiting: bool = False) -> Dialogue:
    texts, roles = [], []
    for number, turn in enumerate(turns, 1):
        role, text = _turn(turn, number)
        if role == "system" and number == 1:
            system = text
            continue
        texts.append(text)
        roles.append(role)
    if not texts:
        raise ValueError("a dialogue without turns")
    if any(roles):
        for number, (before, after) in enumerate(pairwise(roles), 1):
            if before == after or "system" in (before, after):
                raise ValueError(f"turns {number} and {number + 1} are {before} and {after}; they must alternate")
        if roles == ["assistant"]:
            raise ValueError("the assistant speaks alone; expected a user's turn before it")
        if roles[-1] == "user" and waiting:
            texts.append("")
        elif roles[-1] != "assistant":
            last = f"the last turn is the {roles[-1]}'s"
            raise ValueError(f"{last}; expected the assistant's, which is the reply to learn")
    return Dialogue(tuple(texts), system, where=where)


def _turn(turn: Any, number: int) -> tuple[str, str]:
    """Role ("" if turns carry none) and text."""
    if isinstance(turn, str):
        return "", turn
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number} is {type(turn).__name__}; expected text or an object")
    if turn.get("tool_calls") or turn.get("role") == "tool":
        raise ValueError(
            f"turn {number} calls a tool or holds its result; records have texts of a user and an assistant only"
        )
    text = next((turn[key] for key in ("content", "value", "message", "text") if key in turn), None)
    if not isinstance(text, str):
        raise ValueError(f"turn {number} has no text under 'content' or 'value'")
    name = next((turn[key] for key in ("role", "from") if key in turn), "")
    if name and (not isinstance(name, str) or name not in ROLES):
        raise ValueError(f"turn {number} has the role {name!r}; known: {', '.join(ROLES)}")
    return ROLES[name] if name else "", text


def _instruction(value: dict[str, Any], where: str) -> Record:
    prompt = "\n".join(filter(None, (text_at(value, "instruction"), text_at(value, "input", ""))))
    response, system = text_at(value, "output"), text_at(value, "system", "")
    history = value.get("history") or []
    if history:
        pairs = history if isinstance(history, list) else [history]
        if not all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in pairs):
            raise ValueError("'history' must be a list of [question, answer]")
        earlier = [turn for pair in history for turn in pair]
        return Dialogue((*earlier, prompt, response), system, where=where)
    return PromptResponse(prompt, response, system=system, where=where)


def _prompt(value: dict[str, Any], where: str) -> Record:
    prompt, prefix, system = text_at(value, "prompt"), text_at(value, "prefix", ""), text_at(value, "system", "")
    if "answers" in value:
        history = value.get("history") or []
        if not isinstance(history, list) or not all(isinstance(turn, str) for turn in history):
            raise ValueError("'history' must be a list of the turns before the prompt")
        return ScoredAnswers(prompt, _answers(value["answers"]), prefix, system, where, tuple(history))
    for key in ("response", "text", "completion"):
        if key in value:
            return PromptResponse(prompt, text_at(value, key), prefix, system, where)
    raise ValueError("'prompt' without 'response', 'text' or 'answers'")


def _preference(value: dict[str, Any], where: str) -> ScoredAnswers:
    prompt = value.get("prompt", value.get("question"))
    if isinstance(prompt, list):
        asked: list[Any] | None = prompt
    elif prompt is not None:
        asked = [text_at({"prompt": prompt}, "prompt")]
    elif "instruction" in value:
        asked = ["\n".join(filter(None, (text_at(value, "instruction"), text_at(value, "input", ""))))]
    else:
        asked = next((value[key] for key in TURNS if isinstance(value.get(key), list)), None)
    chosen, rejected = (_answered(value[side], asked, text_at(value, "system", ""), where) for side in SIDES)
    if (chosen.turns[:-1], chosen.system) != (rejected.turns[:-1], rejected.system):
        raise ValueError("'chosen' and 'rejected' do not answer the same turns")
    *history, prompt = chosen.turns[:-1]
    answers = ((chosen.turns[-1], 1.0), (rejected.turns[-1], 0.0))
    return ScoredAnswers(prompt, answers, text_at(value, "prefix", ""), chosen.system, where, tuple(history))


def _answered(answer: Any, asked: list[Any] | None, system: str, where: str) -> Dialogue:
    """The dialogue that ends in a chosen or rejected answer: a text, a message, or a conversation whose last turn it is.

    ``asked``: the turns before the answer; None: those in the conversation.
    """
    *before, answer = answer or [""] if isinstance(answer, list) else [answer]
    turns = [*(before if asked is None else asked)]
    if isinstance(answer, str) and any(isinstance(turn, dict) for turn in turns):
        answer = {"role": "assistant", "content": answer}
    dialogue = _dialogue([*turns, answer], system, where)
    if len(dialogue.turns) < 2:
        raise ValueError("'chosen' and 'rejected' without what they answer: expected 'prompt', 'instruction' or turns")
    return dialogue


def _answers(answers: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(answers, list) or not answers:
        raise ValueError('\'answers\' must be a list of {"answer", "score"} with at least one of them')
    pairs = []
    for number, answer in enumerate(answers, 1):
        score = answer.get("score") if isinstance(answer, dict) else None
        if not isinstance(score, (int, float)) or isinstance(score, bool):
            raise ValueError(f'answer {number}: expected {{"answer": text, "score": number}}')
        if not abs(score) <= sys.float_info.max:  # true for NaN as well
            raise ValueError(f"answer {number} has the score {str(score)[:20]}; expected a finite number")
        pairs.append((text_at(answer, "answer"), float(score)))
    return tuple(pairs)
