"""What PanGu-α is shown of a prompt that is too long, and what its configuration may say."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hanmo.checkpoints import open_model, save_model
from hanmo.errors import ConfigError
from hanmo.families.base import Family, OpenedModel
from hanmo.families.pangu.family import PanguFamily
from hanmo.families.pangu.modeling import PanguConfig, PanguModel
from hanmo.families.pangu.original_format import read_config
from hanmo.nn.prenorm import ACTIVATIONS
from hanmo.records import Dialogue, PromptResponse, Text
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


@pytest.mark.parametrize("limit", [3, 4, 5, 100])
def test_a_text_that_is_cut_is_not_said_to_end(limit: int, family: Family) -> None:
    """Labels by hand: the text's tokens, and behind its last one, if it is seen, the stop token."""
    ids = family.tokenizer.encode("今天天气真不错", add_special_tokens=False)
    assert len(ids) == 4
    [parts] = family.parts(Text("今天天气真不错"), limit)
    row = family.row(parts)
    seen = ids[: limit - 1]
    assert row.inputs["input_ids"].tolist() == [family.tokenizer.bos_token_id, *seen]
    assert row.labels.tolist() == [*seen, family.config.eos_token_id if limit > 4 else -100]


def test_of_a_prompt_the_beginning_is_seen(family: Family) -> None:
    """As published."""
    pair = PromptResponse("今天天气真不错明天去哪里玩谢谢再见三加五等于几北京", "好")
    whole, seen = family.context(pair, 1000).ids, family.context(pair, LIMIT).ids
    assert len(whole) > LIMIT == len(seen)
    assert seen[:-1] == whole[: LIMIT - 1] and seen[-1] == whole[-1]
    ((given, _),) = family.parts(pair, LIMIT)
    assert given.ids[:-1] == whole[: len(given.ids) - 1]


PLAIN = {
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "relu6": lambda x: x.clamp(0, 6),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "gelu_10": lambda x: nn.functional.gelu(x).clamp(-10, 10),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": torch.tanh,
    "mish": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
    "linear": lambda x: x,
}


def by_hand(network: PanguModel, ids: list[int], activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits (T, V) as the port computes them, in plain torch."""
    config, places = network.config, torch.arange(len(ids))
    x = network.embed_tokens.weight[ids] + network.embed_positions.weight[places]
    causal = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for number, block in enumerate(network.layers, 1):
        if number == len(network.layers):
            x = network.final_norm(x)
        normed = block.attention_norm(x)
        asked = network.embed_queries.weight[places] if number == len(network.layers) else normed
        parts = (block.attention.q_proj(asked), block.attention.k_proj(normed), block.attention.v_proj(normed))
        q, k, v = (part.view(len(ids), config.num_heads, -1).transpose(0, 1) for part in parts)
        mixed = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + causal).softmax(-1) @ v
        x = x + block.attention.o_proj(mixed.transpose(0, 1).flatten(1))
        x = x + block.down_proj(activation(block.up_proj(block.mlp_norm(x))))
    return x @ network.embed_tokens.weight.T


@pytest.mark.parametrize("name", PLAIN)
def test_the_activation_is_the_one_that_the_configuration_names(name: str, tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path / "vocabulary")
    settings = {**opened.network.config.to_dict(), **read_config({"activation_function": name})}
    config = PanguConfig(**settings)
    torch.manual_seed(0)
    network = PanguModel(config).eval()
    ids = [1, 8, 30, 12, 51, 9]
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([ids])).logits[0]
        expected = by_hand(network, ids, PLAIN[name])
    assert torch.allclose(logits, expected, atol=1e-4), (logits - expected).abs().max()
    save_model(OpenedModel(network, PanguFamily(config, opened.tokenizer), "x"), tmp_path / "saved")
    again = open_model(tmp_path / "saved", device="cpu", dtype="fp32").network
    with torch.inference_mode():
        assert torch.equal(again(input_ids=torch.tensor([ids])).logits[0], logits)


def test_every_activation_that_is_known_can_be_built() -> None:
    assert set(PLAIN) <= set(ACTIVATIONS)
    for name in ACTIVATIONS:
        config = PanguConfig(vocab_size=16, hidden_size=8, num_layers=1, num_heads=1, activation_function=name)
        network = PanguModel(config)
        assert not list(network.layers[0].activation.parameters()), "an activation has no weights"
    with pytest.raises(ConfigError, match=r"unknown activation_function 'rellu': did you mean relu"):
        PanguConfig(activation_function="rellu")
