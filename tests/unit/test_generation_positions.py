"""A conversation that reaches the positions of a model is shortened, so that every turn has its reply."""

from pathlib import Path

import pytest
import torch

from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt
from hanmo.generation.chat import ChatSession
from hanmo.generation.settings import Settings
from tests.unit.architectures import build
from tests.unit.tiny import tiny
from tests.unit.transformers_models import tokenizer

POSITIONS, REPLY = 64, 20
OURS = {
    "pangu": {"max_position_embeddings": POSITIONS},
    "glm": {"max_sequence_length": POSITIONS},
    "transformer_xl": {"relative": False, "memory_length": 0, "max_position_embeddings": POSITIONS},
}
NAMES = (*OURS, "gpt2", "bart")


def opened(name: str, folder: Path) -> OpenedModel:
    """A model with few positions."""
    if name in OURS:
        usual = tiny(name, folder)
        config = type(usual.family.config).from_dict({**usual.family.config.to_dict(), **OURS[name]})
        torch.manual_seed(0)
        network = type(usual.network)(config).eval()
        return OpenedModel(network, type(usual.family)(config, usual.tokenizer), name)
    words = tokenizer()
    network = adopt(build(name, vocab_size=len(words), max_position_embeddings=POSITIONS))
    return OpenedModel(network, HuggingfaceFamily(network.config, words), name)


def session(model: OpenedModel, reply: int) -> ChatSession:
    settings = Settings(max_new_tokens=reply, seed=1, suppressed_ids=model.family.stop_ids)
    return ChatSession(model, settings, limit=512)


@pytest.mark.parametrize("name", NAMES)
def test_a_long_conversation_goes_on(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    talk = session(model, REPLY)
    replies = [talk.reply("今天天气真不错") for _ in range(6)]
    assert [len(reply.ids) for reply in replies] == [REPLY] * 6
    assert len(replies[-1].context.full_ids) > POSITIONS, "the conversation is longer than the positions"


@pytest.mark.parametrize("name", NAMES)
def test_a_reply_that_may_be_longer_than_the_positions_ends_with_them(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    talk = session(model, 10 * POSITIONS)
    for _ in range(3):
        reply = talk.reply("你好")
        shared = 0 if name in ("glm", "bart") else len(reply.context.ids)
        assert len(reply.ids) == POSITIONS - shared
