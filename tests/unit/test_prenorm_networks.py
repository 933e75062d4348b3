"""PanGu-α and GLM as networks: sizes, fresh weights, tied heads, decoding equal to the whole forward, LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.errors import UnsupportedError
from hanmo.families import load
from hanmo.families.glm.modeling import GlmConfig, GlmModel
from hanmo.families.pangu.modeling import PanguConfig, PanguModel
from hanmo.rows import IGNORE
from hanmo.training.trainable import checkpoint_layers, switch_dropout_off

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_layers": 3}


def small(name: str) -> Any:
    torch.manual_seed(0)
    if name == "pangu":
        return PanguModel(PanguConfig(**SMALL, num_heads=4, initializer_range=0.3)).eval()
    return GlmModel(GlmConfig(**SMALL, num_attention_heads=4, initializer_range=0.3)).eval()


@pytest.mark.parametrize("name", ["pangu", "glm"])
def test_released_sizes_have_the_published_parameter_counts(name: str) -> None:
    family = load(name)
    for size in family.original_format.SIZES.values():
        with torch.device("meta"):
            network = family.network_class(family.config_class(**size.config))
        assert sum(parameter.numel() for parameter in network.parameters()) == size.parameters


@pytest.mark.parametrize("name", ["pangu", "glm"])
def test_fresh_weights(name: str) -> None:
    network = small(name)
    for block in network.layers:
        for projection in (block.attention.o_proj, block.down_proj):
            assert projection.weight.std().item() == pytest.approx(0.3 / 6**0.5, rel=0.15)
        assert block.up_proj.weight.std().item() == pytest.approx(0.3, rel=0.15)
        assert block.up_proj.bias.abs().max() == 0


@pytest.mark.parametrize("name", ["pangu", "glm"])
def test_the_head_stays_tied(name: str, tmp_path: Path) -> None:
    network = small(name)
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path)
    assert again.lm_head.weight is again.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, network.lm_head.weight)


@pytest.mark.parametrize("name", ["pangu", "glm"])
@pytest.mark.parametrize("stride", [1, 3])
def test_decoding_equals_the_whole_forward(name: str, stride: int) -> None:
    """Prompts of 5 and 3 tokens filled on the left, then six tokens in steps; each row as if it were alone."""
    network = small(name)
    lengths, new = (5, 3), torch.randint(10, 50, (2, 6))
    prompts = torch.randint(10, 50, (2, 5))
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    places = (mask.cumsum(1) - 1).clamp_min(0)
    inputs = {"input_ids": prompts * mask, "attention_mask": mask, "position_ids": places}
    if name == "glm":
        inputs["position_ids"] = torch.stack([places, torch.zeros_like(places)], 1)
        inputs["prefix"] = torch.tensor(lengths)
    with torch.no_grad():
        first, state = network.prefill(**inputs)
        steps = [first]
        for at in range(0, 6, stride):
            position = torch.stack([torch.arange(length + at, length + at + stride) for length in lengths])[:, None]
            if name == "glm":
                position = torch.cat([position, torch.zeros_like(position)], 1)
            steps.append(network.step(new[:, at : at + stride], position, state))
        decoded = torch.cat(steps, 1)
        for row, length in enumerate(lengths):
            ids = torch.cat([prompts[row, 5 - length :], new[row]])[None]
            extra = {"prefix": torch.tensor([length])} if name == "glm" else {}
            whole = network(input_ids=ids, **extra).logits[0, length - 1 :]
            assert (decoded[row] - whole).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["pangu", "glm"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    ids = torch.randint(10, 50, (2, 7))
    labels = ids.roll(-1, 1)
    labels[:, -1] = IGNORE
    gradients = []
    for checkpointing in (False, True):
        network = small(name)
        network.train()
        switch_dropout_off(network)
        if checkpointing:
            checkpoint_layers(network, selective=False)
        network(input_ids=ids, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["pangu", "glm"])
def test_more_tokens_than_positions_are_refused(name: str) -> None:
    """In a row, and in the middle of a reply; rows whose positions begin again may be longer."""
    network = small(name)
    rows = network.embed_positions.num_embeddings
    ids = torch.randint(10, 50, (1, rows + 1))
    places = torch.arange(rows + 1)[None] % rows
    if name == "glm":
        places = torch.stack([places, torch.zeros_like(places)], 1)
    with torch.no_grad(), pytest.raises(UnsupportedError, match=f"{rows + 1} tokens in a row, but .* {rows} positions"):
        network(input_ids=ids)
    with torch.no_grad():
        assert network(input_ids=ids, position_ids=places).logits.shape[1] == rows + 1
        beside = {"prefix": torch.tensor([rows])} if name == "glm" else {}
        _, state = network.prefill(ids[:, :rows], torch.ones(1, rows).long(), places[..., :rows], **beside)
        with pytest.raises(UnsupportedError, match="room for max_new_tokens"):
            network.step(ids[:, -1:], torch.full((1, 2 if name == "glm" else 1, 1), rows), state)
