"""EVA's gradients and first optimizer steps against the original's."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanmo.rows import IGNORE
from tests.parity.eva_original import EVA, entries, network
from tests.places import load, needs_parity
from tests.ranks import whole

pytestmark = needs_parity("eva")
STEPS = load(EVA / "train_steps.json", {})


def padded_rows() -> dict[str, Tensor]:
    cases = load_file(EVA / f"forward_{STEPS['model']}.safetensors")
    mask = cases["padded/loss_mask"].bool()
    return {
        "input_ids": cases["padded/enc_input_ids"],
        "attention_mask": cases["padded/enc_attention_mask"][:, 0, 0],
        "decoder_input_ids": cases["padded/dec_input_ids"],
        "labels": cases["padded/labels"].masked_fill(~mask, IGNORE),
        "weights": mask / mask.sum(-1, keepdim=True),
    }


def test_gradient_of_every_tensor():
    model = network(STEPS["model"]).train()
    model(**padded_rows()).loss.backward()
    parameters = dict(model.named_parameters())
    by_name = {entry.theirs: entry for entry in entries(model.config, "megatron")}
    assert set(by_name) == set(STEPS["grad_l2_first_step"]) | set(STEPS["no_grad_first_step"])
    for theirs, norm in STEPS["grad_l2_first_step"].items():
        gradient = torch.cat([whole(parameters[ours].grad) for ours in by_name[theirs].ours])
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), theirs
    for theirs in STEPS["no_grad_first_step"]:
        assert all(parameters[ours].grad is None for ours in by_name[theirs].ours), theirs


def test_first_steps():
    """Losses and gradient norms of AdamW with the recorded groups, clipping and rate."""
    model = network(STEPS["model"]).train()
    parameters = dict(model.named_parameters())
    ours = {entry.theirs: entry.ours for entry in entries(model.config, "megatron")}
    groups = [
        {"params": [parameters[name] for theirs in STEPS[key] for name in ours[theirs]], "weight_decay": decay}
        for key, decay in (("decayed_params", STEPS["weight_decay"]), ("undecayed_params", 0.0))
    ]
    assert sum(len(group["params"]) for group in groups) == len(parameters)
    optimizer = torch.optim.AdamW(groups, lr=STEPS["lr"], betas=tuple(STEPS["betas"]), eps=STEPS["eps"])
    batch, losses, norms = padded_rows(), [], []
    for _ in STEPS["losses"]:
        loss = model(**batch).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), STEPS["clip_grad"]).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx(STEPS["losses"], rel=1e-4)
    assert norms == pytest.approx(STEPS["total_grad_norm_before_clip"], rel=1e-3)
