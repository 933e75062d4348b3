"""GLM against its recordings: logits, memory, losses, gradients, training traces, of the port and of the original."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanmo.families.glm import original_format
from hanmo.families.glm.modeling import GlmModel
from hanmo.families.weight_map import expand
from hanmo.nn.prenorm import GELUS
from hanmo.rows import IGNORE
from tests.originals import network as open_network
from tests.places import PARITY, load, needs_parity
from tests.ranks import whole

pytestmark = needs_parity("glm")
FOLDER = PARITY / "glm"
LOGITS, GRADIENTS = 2e-4, 1e-5  # the tolerances its README suggests


def network(checkpoint: Path | str, activation: str = "gelu") -> GlmModel:
    """The port's recordings were made with the exact GELU, the original's with the tanh form."""
    return with_activation(open_network(FOLDER / checkpoint), activation)


def with_activation(model: GlmModel, activation: str) -> GlmModel:
    for block in model.layers:
        block.activation = GELUS[activation]()
    return model


def attention(mask: Tensor | None, batch: int, length: int) -> dict[str, Tensor]:
    """The original's one attention argument as our arguments: a prefix length, a mask of keys, or a whole mask."""
    if mask is None:
        return {}
    if mask.numel() in (1, batch):
        return {"prefix": mask.view(-1)}
    if mask.dim() == 2:
        return {"attention_mask": mask, "prefix": torch.tensor([length])}
    return {"attention_mask": mask}


def hidden_states(model: GlmModel) -> list[Tensor]:
    """Filled by the next forward: the input of every layer and the output of the last, as ``mems`` are."""
    states: list[Tensor] = []
    for block in model.layers:
        block.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model.layers[-1].register_forward_hook(lambda _, args, output: states.append(output))
    return states


def forward_cases() -> list[Any]:
    files = sorted(FOLDER.glob("forward_*.json"))
    return [
        pytest.param(path, case["id"], id=f"{path.stem}-{case['id']}") for path in files for case in load(path)["cases"]
    ]


@pytest.mark.parametrize(("path", "name"), forward_cases())
def test_forward(path: Path, name: str) -> None:
    recorded = json.loads(path.read_text())
    case = next(case for case in recorded["cases"] if case["id"] == name)
    arrays = np.load(FOLDER / recorded["arrays"])
    inputs = {key: torch.from_numpy(arrays[spec["array"]]).long() for key, spec in case["inputs"].items()}
    expected = {key: torch.from_numpy(arrays[f"{name}/{key}"]) for key in case["outputs"] if f"{name}/{key}" in arrays}
    model = network(recorded["checkpoint"])
    if "context_ids" in inputs:
        # The cases that feed the new tokens as a chunk have the positions of the case that feeds them one by one.
        inputs.setdefault("full_positions", torch.from_numpy(arrays["mems_steps/in/full_positions"]))
        check_memory(model, inputs, expected)
        return
    labels = inputs.pop("labels", None)
    ids = inputs["input_ids"]
    shape = attention(inputs.pop("attention_mask", None), *ids.shape)
    states = hidden_states(model)
    with torch.no_grad():
        logits = model(**inputs, **shape).logits
    assert (logits - expected["logits"]).abs().max() < LOGITS
    for key, value in expected.items():
        if key.startswith("mems."):
            assert (states[int(key.split(".")[1])] - value).abs().max() < LOGITS, key
    if labels is not None:
        aligned = torch.where(labels == model.config.pad_token_id, IGNORE, labels)
        loss = model(**inputs, **shape, labels=aligned).loss
        assert loss.item() == pytest.approx(float(expected["loss"]), abs=LOGITS)


def check_memory(model: GlmModel, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The context at once, then the new tokens: one at a time and all together, where the recording allows both."""
    context, new = inputs["context_ids"], inputs["new_ids"]
    length = context.shape[1]
    positions = inputs["full_positions"]
    whole = torch.ones_like(context)
    for stride in (1, new.shape[1]):
        with torch.no_grad():
            first, state = model.prefill(context, whole, positions[:, :, :length], torch.tensor(length))
            if "context_logits" in expected:
                assert (first - expected["context_logits"][:, -1:]).abs().max() < LOGITS
            steps = []
            for at in range(0, new.shape[1], stride):
                where = slice(length + at, length + at + stride)
                mask = inputs.get("attention_mask")
                ids = new[:, at : at + stride]
                if mask is None:
                    steps.append(model.step(ids, positions[:, :, where], state))
                else:
                    state.grow(torch.ones_like(ids))
                    rows = mask[:, :, at : at + stride, : state.length]
                    steps.append(model.lm_head(model.backbone(ids, rows, positions[:, :, where], state=state)))
        assert (torch.cat(steps, 1) - expected["logits"]).abs().max() < LOGITS


def loss_files() -> list[Path]:
    return sorted(FOLDER.glob("loss_*.json"))


def batch(inputs: dict[str, Any], pad: int) -> dict[str, Tensor]:
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    labels = tensors.pop("labels")
    return {**tensors, "labels": torch.where(labels == pad, IGNORE, labels)}


@pytest.mark.parametrize("path", loss_files(), ids=lambda path: path.stem)
def test_losses_and_gradients(path: Path) -> None:
    recorded = json.loads(path.read_text())
    cases = [case for case in recorded["cases"] if "loss" in case]
    assert cases
    for case in cases:
        model = network(recorded["checkpoint"])
        output = model(**batch(case["inputs"], model.config.pad_token_id))
        assert output.loss.item() == pytest.approx(case["loss"], abs=LOGITS)
        if "gradients_file" in case:
            output.loss.backward()
            parameters = dict(model.named_parameters())
            entries = {entry.theirs: entry for entry in expand(original_format.HF_BIN.entries, model.config)}
            for name, gradient in load_file(FOLDER / case["gradients_file"]).items():
                ours = torch.cat([whole(parameters[part].grad) for part in entries[name.removeprefix("glm.")].ours])
                assert (ours - gradient).abs().max() < GRADIENTS, name


@pytest.mark.parametrize("trainable", [True, False], ids=["trainable_embedding", "as_written"])
@pytest.mark.parametrize("path", loss_files(), ids=lambda path: path.stem)
def test_training_trace(path: Path, trainable: bool) -> None:
    """The port held the word embedding as a buffer, which never learns; a frozen one reproduces that."""
    recorded = json.loads(path.read_text())
    trace = next(case for case in recorded["cases"] if "batches" in case)
    expected = trace["with_trainable_word_embeddings" if trainable else "as_written_frozen_word_embeddings"]
    model = network(recorded["checkpoint"])
    model.embed_tokens.weight.requires_grad_(trainable)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.005, weight_decay=0.01)
    for inputs, step in zip(trace["batches"], expected["steps"], strict=True):
        loss = model(**batch(inputs, model.config.pad_token_id)).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(step["loss"], abs=LOGITS)
        assert norm.item() == pytest.approx(step["grad_norm_before_clip"], abs=LOGITS)


MEGATRON = FOLDER / "megatron"


def megatron_network(recorded: dict[str, Any], activation: str, folder: Path) -> GlmModel:
    """The original stores no configuration: it comes from the recording."""
    config = folder / "config.json"
    config.write_text(json.dumps(recorded["config"]))
    checkpoint = (MEGATRON / recorded["checkpoint"]).parent.parent
    return with_activation(open_network(checkpoint, config), activation)


def check_megatron_memory(
    model: GlmModel, inputs: dict[str, Tensor], expected: Tensor, mask_position: int, keep: int | None
) -> None:
    context, new, positions = inputs["context_ids"], inputs["new_ids"], inputs["context_positions"]
    with torch.no_grad():
        _, state = model.prefill(context, torch.ones_like(context), positions, torch.tensor(context.shape[1]))
        # With a bounded memory the recording feeds the new tokens in one call, else one by one.
        stride = new.shape[1] if keep is not None else 1
        if keep is not None:
            state.keep_last(keep)
        places = torch.stack([torch.full((new.shape[1],), mask_position), torch.arange(1, new.shape[1] + 1)])
        for at in range(0, new.shape[1], stride):
            where = slice(at, at + stride)
            logits = model.step(new[:, where], places[:, where].expand(len(new), -1, -1), state)
            assert (logits - expected[:, where]).abs().max() < LOGITS


def megatron_cases() -> list[str]:
    return [case["id"] for case in load(MEGATRON / "cases.json", {"forward": []})["forward"]]


@pytest.mark.parametrize("name", megatron_cases())
def test_megatron_forward(name: str, tmp_path: Path) -> None:
    recorded = json.loads((MEGATRON / "cases.json").read_text())
    case = next(case for case in recorded["forward"] if case["id"] == name)
    arrays = np.load(MEGATRON / recorded["arrays"])
    inputs = {key: torch.from_numpy(arrays[f"{name}/in/{key}"]).long() for key in case["inputs"]}
    expected = {
        key: torch.from_numpy(np.asarray(arrays[f"{name}/{key}"]))
        for key in case["outputs"]
        if f"{name}/{key}" in arrays
    }
    model = megatron_network(recorded, "gelu_new", tmp_path)
    if "context_ids" in inputs:
        steps = next(other for other in recorded["forward"] if other["id"] == "mems_steps")
        mask_position = int(re.search(r"positions \((\d+),k\)", steps["description"])[1])
        keep = re.search(r"max_memory_length = (\d+)", case["description"])
        check_megatron_memory(model, inputs, expected["logits"], mask_position, int(keep[1]) if keep else None)
        return
    shape = attention(inputs.pop("attention_mask", None), *inputs["input_ids"].shape)
    states = hidden_states(model)
    with torch.no_grad():
        assert (model(**inputs, **shape).logits - expected["logits"]).abs().max() < LOGITS
        for key, value in expected.items():
            if key.startswith("mems."):
                assert (states[int(key.split(".")[1])] - value).abs().max() < LOGITS, key
        if "hf_port_logits" in expected:
            port = megatron_network(recorded, "gelu", tmp_path)
            assert (port(**inputs, **shape).logits - expected["hf_port_logits"]).abs().max() < LOGITS


def variant_cases() -> list[str]:
    return [case["id"] for case in load(FOLDER / "variants.json", {"cases": []})["cases"] if "weights" in case]


@pytest.mark.parametrize("name", variant_cases())
def test_variants(name: str, tmp_path: Path) -> None:
    case = next(case for case in load(FOLDER / "variants.json")["cases"] if case["id"] == name)
    arrays = np.load(FOLDER / "variants.npz")
    inputs = {key.rsplit("/", 1)[1]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith(f"{name}/in/")}
    labels = inputs.pop("labels", None)
    weights = load_file(FOLDER / case["weights"])
    # A classifier on top is no part of the language model.
    head = {key: weights.pop(key) for key in list(weights) if key.startswith(("dense.", "out_proj."))}
    weights = {key.removeprefix("glm."): value for key, value in weights.items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    model = with_activation(open_network(tmp_path), "gelu")
    shape = attention(inputs.pop("attention_mask"), *inputs["input_ids"].shape)
    with torch.no_grad():
        if not head:
            assert (model(**inputs, **shape).logits - torch.from_numpy(arrays[f"{name}/logits"])).abs().max() < LOGITS
            return
        hidden = model.backbone(**inputs, **shape)
        assert (hidden - torch.from_numpy(arrays[f"{name}/hidden_states"])).abs().max() < LOGITS
        pooled = torch.tanh(hidden[:, 0] @ head["dense.weight"].T + head["dense.bias"])
        logits = pooled @ head["out_proj.weight"].T + head["out_proj.bias"]
        assert (logits - torch.from_numpy(arrays[f"{name}/logits"])).abs().max() < LOGITS
        loss = torch.nn.functional.cross_entropy(logits, labels)
        assert loss.item() == pytest.approx(arrays[f"{name}/loss"].item(), abs=LOGITS)
