"""Chat sessions against the original: what the model is shown after each turn, and whole sessions with its replies."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hanmo.families.base import OpenedModel
from hanmo.families.eva.family import EvaFamily
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.generation.chat import ChatSession, Reply
from hanmo.generation.settings import Settings
from tests.parity.eva_models import EVA, opened, settings
from tests.places import load, needs_parity
from tests.searching import drawing

pytestmark = needs_parity("eva")
TRUNCATIONS = load(EVA / "interactive_truncation.json")
SESSIONS = load(EVA / "interactive_sessions.json")
LIMIT = EvaFamily.chat_limit


def played(chat: ChatSession, users: list[str], say: Callable[[str], Reply]) -> list[dict]:
    """What happens in a session, in the form of the recordings."""
    events = []
    bos = chat.opened.tokenizer.bos_token_id
    for user in users:
        if user == "clear":
            chat.clear()
            events.append({"user": user})
            continue
        reply = say(user)
        events.append(
            {
                "user": user,
                "full_context": list(reply.context.full_ids),
                "enc_input_ids": [*reply.context.ids, bos],
                "dec_input_ids": [bos],
                "reply_ids": list(reply.ids),
                "reply": reply.text,
            }
        )
    return events


@pytest.mark.parametrize("case", TRUNCATIONS, ids=lambda case: case["id"])
def test_what_the_model_is_shown(case):
    """The replies are scripted: a small random network says what it is made to draw."""
    tokenizer = EvaTokenizer(str(EVA / case["vocab"]))
    sizes = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1, "vocab_size": tokenizer.vocab_size}
    family = EvaFamily(EvaConfig(**sizes), tokenizer)
    chat = ChatSession(OpenedModel(EvaModel(family.config).eval(), family, "scripted"), Settings(), LIMIT)
    scripted = iter(case["scripted_replies"])

    def say(user):
        ids = [*tokenizer.encode_plain(next(scripted)), tokenizer.sep_token_id]
        with drawing(lambda step, samples, probs, count: torch.tensor([[ids[step]]])):
            return chat.reply(user)

    # The recorded replies are the scripts, before their tokens made them text again.
    expected = [
        event if "reply" not in event else {**event, "reply": family.decode(tokenizer.encode_plain(event["reply"]))}
        for event in case["events"]
    ]
    assert played(chat, case["users"], say) == expected


@pytest.mark.parametrize("case", SESSIONS, ids=lambda case: case["id"])
def test_whole_sessions(case):
    model = opened(case["model"], case["args"]["rule_path"])
    chat = ChatSession(model, settings(case["args"]), LIMIT)
    assert played(chat, case["users"], chat.reply) == case["events"]


@pytest.mark.parametrize("case", [case for case in SESSIONS if case["is_done_ties"]], ids=lambda case: case["id"])
def test_whole_sessions_if_ties_are_not_done(case, monkeypatch):
    monkeypatch.setattr(EvaFamily, "published_conventions", replace(EvaFamily.published_conventions, tie=-1e-5))
    model = opened(case["model"], case["args"]["rule_path"])
    chat = ChatSession(model, settings(case["args"]), LIMIT)
    assert played(chat, case["users"], chat.reply) == case["events_if_ties_are_not_done"]
