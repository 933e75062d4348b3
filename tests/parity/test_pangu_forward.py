"""PanGu-α against its recordings: logits, cache, losses, gradients, training traces."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hanmo.families.pangu import original_format
from hanmo.families.pangu.modeling import PanguModel
from hanmo.families.weight_map import expand
from hanmo.rows import IGNORE
from tests.originals import network as open_network
from tests.places import PARITY, load, needs_parity
from tests.ranks import whole

pytestmark = needs_parity("pangu")
FOLDER = PARITY / "pangu"
LOGITS, GRADIENTS = 1e-4, 1e-5  # the tolerances its README suggests


def forward_cases() -> list[Any]:
    files = sorted(FOLDER.glob("forward_*.json"))
    return [
        pytest.param(path, case["id"], id=f"{path.stem}-{case['id']}") for path in files for case in load(path)["cases"]
    ]


def network(checkpoint: str) -> PanguModel:
    return open_network(FOLDER / checkpoint)


@pytest.mark.parametrize(("path", "name"), forward_cases())
def test_forward(path: Path, name: str) -> None:
    recorded = json.loads(path.read_text())
    case = next(case for case in recorded["cases"] if case["id"] == name)
    arrays = np.load(FOLDER / recorded["arrays"])
    inputs = {}
    for key, spec in case["inputs"].items():
        if isinstance(spec, dict) and "array" in spec:
            inputs[key] = torch.from_numpy(arrays[spec["array"]]).to(getattr(torch, spec["dtype"]))
    model = network(recorded["checkpoint"])
    mask = inputs.get("attention_mask")
    expected = {key: torch.from_numpy(arrays[f"{name}/{key}"]) for key in case["outputs"] if f"{name}/{key}" in arrays}
    if mask is not None and mask.dtype == torch.int64:
        # The published port added int64 masks to the scores as they were; our integer masks keep padding out.
        inputs["attention_mask"] = mask.float()
    three_dim = inputs.get("input_ids", torch.empty(0)).dim() == 3
    if three_dim:
        inputs = {key: value.squeeze(1) for key, value in inputs.items()}
    if (heads := inputs.pop("head_mask", None)) is not None:
        for block, factors_H in zip(model.layers, heads, strict=True):
            scale_D = factors_H.repeat_interleave(model.config.hidden_size // model.config.num_heads)
            block.attention.o_proj.register_forward_pre_hook(lambda _, args, scale=scale_D: (args[0] * scale,))

    if "split_at" in case["inputs"]:
        check_cache(model, inputs, case["inputs"]["split_at"], expected)
        return
    blocks: list[torch.Tensor] = []
    for block in model.layers:
        block.register_forward_pre_hook(lambda _, args: blocks.append(args[0]))
    with torch.no_grad():
        logits = model(**inputs).logits
    logits = logits[:, None] if three_dim else logits
    # Where a query sees nothing but padding, the original attends to a mixture of what it should not see.
    real = (
        torch.ones(logits.shape[:-1], dtype=torch.bool)
        if mask is None or mask.is_floating_point() or mask.dtype == torch.int64
        else mask.bool()
    )
    assert (logits - expected["logits"])[real].abs().max() < LOGITS
    for key, value in expected.items():
        if key.startswith("hidden_states.") and int(key.split(".")[1]) < len(blocks):
            assert (blocks[int(key.split(".")[1])] - value).abs().max() < LOGITS, key


def check_cache(
    model: PanguModel, inputs: dict[str, torch.Tensor], split: int, expected: dict[str, torch.Tensor]
) -> None:
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    positions = inputs.get("position_ids", torch.arange(ids.shape[1]).expand_as(ids))
    with torch.no_grad():
        first, state = model.prefill(ids[:, :split], mask[:, :split], positions[:, :split])
        rest = model.step(ids[:, split:], positions[:, None, split:], state)
    assert (first - expected["first_call_logits"][:, -1:]).abs().max() < LOGITS
    assert (rest - expected["logits"]).abs().max() < LOGITS


def loss_files() -> list[Path]:
    return sorted(FOLDER.glob("loss_*.json"))


def batch(case: dict[str, Any], pad: int) -> dict[str, torch.Tensor]:
    """The original's labels = input_ids, aligned with the logits that predict them."""
    ids = torch.tensor(case["input_ids"])
    ids = ids.reshape(-1, ids.shape[-1])
    labels = torch.where(ids == pad, IGNORE, ids).roll(-1, 1)
    labels[:, -1] = IGNORE
    return {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels}


@pytest.mark.parametrize("path", loss_files(), ids=lambda path: path.stem)
def test_losses_and_gradients(path: Path) -> None:
    recorded = json.loads(path.read_text())
    cases = [case for case in recorded["cases"] if "loss" in case]
    assert cases
    for case in cases:
        model = network(recorded["checkpoint"])
        inputs = batch(case, model.config.pad_token_id)
        output = model(**inputs)
        assert output.loss.item() == pytest.approx(case["loss"], abs=LOGITS)
        if "per_token_nll" in case:
            nll = torch.tensor(case["per_token_nll"]).reshape(len(inputs["labels"]), -1)
            assert (-output.logprob[:, :-1] - nll).abs().max() < LOGITS
        if "gradients_file" in case:
            output.loss.backward()
            expected = load_file(FOLDER / case["gradients_file"])
            parameters = dict(model.named_parameters())
            entries = {entry.theirs: entry.ours[0] for entry in expand(original_format.HF_BIN.entries, model.config)}
            for theirs, gradient in expected.items():
                assert (whole(parameters[entries[theirs]].grad) - gradient).abs().max() < GRADIENTS, theirs


@pytest.mark.parametrize("path", loss_files(), ids=lambda path: path.stem)
def test_training_trace(path: Path) -> None:
    recorded = json.loads(path.read_text())
    traces = [case for case in recorded["cases"] if "batches" in case]
    assert traces
    for trace in traces:
        model = network(recorded["checkpoint"])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
        trained = []
        for step in trace["batches"]:
            loss = model(**batch(step, model.config.pad_token_id)).loss
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            trained.append((loss.item(), norm.item()))
        expected = [(step["loss"], step["grad_norm_before_clip"]) for step in trace["steps"]]
        assert trained == [pytest.approx(pair, abs=LOGITS) for pair in expected]
        last = model(**batch(trace["batches"][-1], model.config.pad_token_id)).loss
        assert last.item() == pytest.approx(trace["loss_on_last_batch_after_training"], abs=LOGITS)
