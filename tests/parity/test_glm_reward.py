"""GLM's reward model: values, scores and loss of the original checkpoint as recorded, and its two faults put right."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo.losses import pairwise_loss, tokenwise_loss
from hanmo.nn.prenorm import GELUS
from tests.originals import network
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("glm")
FOLDER = PARITY / "glm"
RECORDED: dict[str, Any] = load(FOLDER / "reward_cases.json", {"cases": []})
CASES = RECORDED["cases"]
SIDES = (("chosen", "chosen"), ("rejected", "reject"))


@pytest.fixture
def reward_model() -> Any:
    """With the exact GELU of the port that made the recordings."""
    model = network(FOLDER / RECORDED["checkpoint"])
    for block in model.layers:
        block.activation = GELUS["gelu"]()
    return model


def values(model: Any, inputs: dict[str, Any], detached: bool) -> Tensor:
    """``detached`` as published: the network under the value head learns nothing."""
    _, hidden, _ = model.features(**{name: torch.tensor(value) for name, value in inputs.items()})
    return model.value_head(hidden.detach() if detached else hidden)


def first_pad(inputs: dict[str, Any], pad_id: int) -> Tensor:
    padding = torch.tensor(inputs["input_ids"]) == pad_id
    return torch.where(padding.any(1), padding.float().argmax(1), padding.shape[1])


def answer_end(inputs: dict[str, Any], pad_id: int) -> Tensor:
    """One past the last token that is no padding: the end of the answer."""
    real = torch.tensor(inputs["input_ids"]) != pad_id
    return real.shape[1] - real.flip(1).float().argmax(1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_values_and_published_scores(reward_model: Any, case: dict[str, Any]) -> None:
    for side, name in SIDES:
        found = values(reward_model, case[side], detached=True)
        torch.testing.assert_close(found, torch.tensor(case[f"{name}_values"]), rtol=1e-4, atol=1e-4)
        last = first_pad(case[side], reward_model.config.pad_token_id) - 1
        scores = found.gather(1, last[:, None])[:, 0]
        torch.testing.assert_close(scores, torch.tensor(case[f"{name}_reward"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_published_loss(reward_model: Any, case: dict[str, Any]) -> None:
    pad = reward_model.config.pad_token_id
    chosen, rejected = (values(reward_model, case[side], detached=True) for side, _ in SIDES)
    ids = [torch.tensor(case[side]["input_ids"]) for side, _ in SIDES]
    start = (ids[0] != ids[1]).float().argmax(1)
    end = torch.maximum(first_pad(case["chosen"], pad), first_pad(case["rejected"], pad))
    assert start.tolist() == [one["divergence"] for one in case["indices"]]
    assert end.tolist() == [one["loss_end"] for one in case["indices"]]
    losses = tokenwise_loss(chosen, rejected, start, end)
    if case["loss"] == "nan":  # published: the end lies inside the context, before the texts part
        assert bool((end <= start).all())
        assert losses.tolist() == [0.0] * len(losses)
        return
    assert losses.mean().item() == pytest.approx(case["loss"], rel=1e-5)
    losses.mean().backward()
    with_gradient = [name for name, p in reward_model.named_parameters() if p.grad is not None]
    assert with_gradient == ["value_head.output.weight"]
    assert case["parameters_with_gradient"] == ["v_head.weight"]
    gradient = reward_model.value_head.output.weight.grad
    assert gradient.norm().item() == pytest.approx(case["grad_norm_v_head"], rel=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_corrected_scores_and_gradients(reward_model: Any, case: dict[str, Any]) -> None:
    """The score stands where the answer ends, so that every pair has a loss, and the whole network learns from it."""
    pad = reward_model.config.pad_token_id
    scores = []
    for side, _ in SIDES:
        last = answer_end(case[side], pad) - 1
        assert bool((last >= torch.tensor([one["divergence"] for one in case["indices"]])).all())
        scores.append(values(reward_model, case[side], detached=False).gather(1, last[:, None])[:, 0])
    loss = pairwise_loss(*scores).mean()
    assert math.isfinite(loss.item())
    assert not torch.allclose(scores[0], scores[1])
    loss.backward()
    unreached = {name for name, p in reward_model.named_parameters() if p.grad is None}
    assert unreached <= {"final_norm.weight", "final_norm.bias"}  # above the state that the value head reads
