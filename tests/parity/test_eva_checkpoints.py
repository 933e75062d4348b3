"""EVA's recorded checkpoints: both layouts open, every tensor goes there and back, and as T5 the logits are the same."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hanmo.checkpoints import open_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.originals.weights import find_weights
from tests import processes
from tests.parity.eva_models import EVA, MODELS
from tests.parity.test_split_checkpoints import assert_same_tensors
from tests.places import load, needs_parity

pytestmark = needs_parity("eva")
models = pytest.mark.parametrize("name", MODELS)
CASES = load(EVA / "forward.json", {})


def hub(name: str) -> Path:
    return EVA / "checkpoints" / f"{name}_hub"


def facts(name: str) -> dict[str, Path]:
    return {"config": EVA / MODELS[name]["config"], "vocab": EVA / MODELS[name]["vocab"]}


@models
def test_names_shapes_dtypes_and_what_lies_beside_them(name: str) -> None:
    recorded = MODELS[name]
    weights = find_weights(EVA / recorded["checkpoint"])
    found = {key: [list(tensor.shape), str(tensor.dtype)] for key, tensor in weights.ranks[0].items()}
    assert found == recorded["module"]
    assert weights.iteration == recorded["iteration"]
    state = {key: list(value) if isinstance(value, set) else value for key, value in weights.state.items()}
    assert state == recorded["top_level"]


@models
def test_both_layouts_are_healthy(name: str) -> None:
    for report in (inspect_model(EVA / MODELS[name]["checkpoint"], **facts(name)), inspect_model(hub(name))):
        assert {check.verdict for check in report.checks} == {"ok"}, report.checks
        assert report.vocabulary["tokens"] == report.vocabulary["rows"]


@models
def test_both_layouts_hold_the_same_network(name: str) -> None:
    original = open_model(EVA / MODELS[name]["checkpoint"], **facts(name), device="cpu").network.state_dict()
    from_hub = open_model(hub(name), device="cpu").network.state_dict()
    optional = {key for key in original if "role" in key}
    assert all(torch.equal(tensor, from_hub[key]) for key, tensor in original.items() if key not in optional)


@models
def test_the_way_there_and_back_is_bit_identical(tmp_path: Path, name: str) -> None:
    source = EVA / MODELS[name]["checkpoint"]
    convert(source, tmp_path / "ours", **facts(name), rules=EVA / MODELS[name]["rules"])
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    before, after = find_weights(source), find_weights(tmp_path / "back")
    assert_same_tensors(before, after)
    assert before.state == after.state
    for tracker in ("latest", "latest_checkpointed_iteration.txt"):
        assert (tmp_path / "back" / tracker).read_bytes() == (source / tracker).read_bytes()
    assert open_model(tmp_path / "ours", device="cpu").family.assets


@models
def test_the_hub_layout_there_and_back(tmp_path: Path, name: str) -> None:
    convert(hub(name), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert_same_tensors(find_weights(hub(name)), find_weights(tmp_path / "back"))
    assert load(tmp_path / "back" / "config.json") == load(hub(name) / "config.json")
    assert (tmp_path / "back" / "vocab.txt").read_text() == (hub(name) / "vocab.txt").read_text()


@models
def test_plain_transformers_gives_the_recorded_logits(tmp_path: Path, name: str) -> None:
    """In a process of its own, which fails if hanmo is imported; the head is untied after another save and reload."""
    convert(hub(name), tmp_path / "t5", to="hf")
    program = Path(__file__).with_name("plain_t5.py")
    command = [sys.executable, "-P", str(program), str(tmp_path / "t5"), str(tmp_path / "logits.safetensors")]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    inputs = EVA / f"forward_{name}.safetensors"
    processes.run([*command, str(inputs)], check=True, cwd=tmp_path, env=environment)
    cases, computed = load_file(inputs), load_file(tmp_path / "logits.safetensors")
    real = cases["padded/dec_attention_mask"][:, 0].bool().any(-1)
    recorded = cases["padded/lm_logits_at_columns"]
    for run in ("loaded", "saved and loaded again"):
        ours = computed[run][:, :, cases["padded/logits_columns"].long()]
        difference = (ours - recorded)[real].abs().max().item()
        assert difference < 1e-4, (run, difference)


@models
def test_the_exported_tokenizer_is_the_same(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    convert(hub(name), tmp_path / "t5", to="hf")
    exported = AutoTokenizer.from_pretrained(tmp_path / "t5", trust_remote_code=True)
    assert type(exported).__module__.startswith("transformers_modules")
    ours = open_model(hub(name), device="cpu").tokenizer
    for text in ("你好,今天天气怎么样?", "", "<sep> 3.14%…A４"):
        assert exported(text)["input_ids"] == ours(text)["input_ids"]
        assert exported(text, "")["input_ids"] == ours(text, "")["input_ids"]
