"""PanGu-α's reward model: values, scores, loss and gradients of the original checkpoint are the recorded ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo.losses import pairwise_loss, tokenwise_loss
from tests.originals import network
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("pangu")
FOLDER = PARITY / "pangu"
RECORDED: dict[str, Any] = load(FOLDER / "reward_cases.json", {"cases": [], "pairwise_loss_module": []})
PAIRS = [case for case in RECORDED["cases"] if case["loss"] is not None]


@pytest.fixture
def reward_model() -> Any:
    return network(FOLDER / RECORDED["checkpoint"])


def ids_of(case: dict[str, Any], side: str) -> Tensor:
    ids = torch.tensor(case[f"{side}_input_ids"])
    return ids.view(-1, ids.shape[-1])


def values(model: Any, case: dict[str, Any], side: str) -> Tensor:
    """Published: a mask of 64-bit integers is added to the scores as it is, which a floating mask reproduces."""
    mask = case.get(f"{side}_attention_mask")
    if mask is not None:
        mask = torch.tensor(mask)
        mask = mask.float() if case.get("attention_mask_dtype", "int64") == "int64" else mask.to(torch.int32)
        mask = mask.view(-1, mask.shape[-1])
    return model.value_head(model.features(input_ids=ids_of(case, side), attention_mask=mask)[1])


def ends(ids: Tensor, pad_id: int) -> Tensor:
    padding = ids == pad_id
    return torch.where(padding.any(1), padding.float().argmax(1), ids.shape[1])


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["id"])
def test_values_and_scores(reward_model: Any, case: dict[str, Any]) -> None:
    for side, name in (("chosen", "chosen"), ("rejected", "reject")):
        if case.get(f"{name}_values") is None:
            continue
        found = values(reward_model, case, side)
        torch.testing.assert_close(found, torch.tensor(case[f"{name}_values"]), rtol=1e-4, atol=1e-4)
        last = ends(ids_of(case, side), reward_model.config.pad_token_id) - 1
        scores = found.gather(1, last[:, None])[:, 0]
        torch.testing.assert_close(scores, torch.tensor(case[f"{name}_reward"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case["id"])
def test_published_loss_and_gradients(reward_model: Any, case: dict[str, Any]) -> None:
    pad = reward_model.config.pad_token_id
    chosen, rejected = ids_of(case, "chosen"), ids_of(case, "rejected")
    start = (chosen != rejected).float().argmax(1)
    end = torch.maximum(ends(chosen, pad), ends(rejected, pad))
    assert start.tolist() == [one["divergence"] for one in case["indices"]]
    assert end.tolist() == [one["loss_end"] for one in case["indices"]]
    loss = tokenwise_loss(values(reward_model, case, "chosen"), values(reward_model, case, "rejected"), start, end)
    assert loss.mean().item() == pytest.approx(case["loss"], rel=1e-5)
    loss.mean().backward()
    gradients = [p.grad for p in reward_model.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert norm == pytest.approx(case["grad_norm_total"], rel=1e-4)
    assert reward_model.value_head.output.weight.grad.norm().item() == pytest.approx(case["grad_norm_v_head"], rel=1e-4)


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case["id"])
def test_corrected_scores_do_not_hang_on_padding(reward_model: Any, case: dict[str, Any]) -> None:
    """Each text scored alone, without padding, equals its score in the batch; which is what ours reads."""
    pad = reward_model.config.pad_token_id
    for side in ("chosen", "rejected"):
        ids = ids_of(case, side)
        last = ends(ids, pad)
        with torch.no_grad():
            batch = reward_model.value_head(reward_model.features(input_ids=ids, attention_mask=(ids != pad).long())[1])
            for row, length in enumerate(last.tolist()):
                alone = reward_model.value_head(reward_model.features(input_ids=ids[row : row + 1, :length])[1])
                assert batch[row, length - 1].item() == pytest.approx(alone[0, -1].item(), abs=1e-5)


@pytest.mark.parametrize("case", RECORDED["pairwise_loss_module"])
def test_pairwise_loss_module(case: dict[str, Any]) -> None:
    found = pairwise_loss(torch.tensor(case["chosen"]), torch.tensor(case["rejected"])).mean().item()
    if case["loss"] == "inf":  # published; log sigmoid as one function does not overflow
        differences = [r - c for c, r in zip(case["chosen"], case["rejected"], strict=True)]
        assert found == pytest.approx(sum(differences) / len(differences))
        return
    assert found == pytest.approx(case["loss"], rel=1e-5)
