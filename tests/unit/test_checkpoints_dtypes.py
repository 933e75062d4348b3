"""Numbers that no network computes with: inspected, and refused by name where they would be computed with or written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.errors import CheckpointError
from tests.unit.checkpoint_files import HUB, original_tensors, tiny_eva, write_hub
from tests.unit.transformers_models import write_model

UP = "model.layers.0.mlp.up_proj.weight"
ODD = ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2", "uint16", "uint32", "uint64", "complex64"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3", tmp_path_factory.mktemp("qwen") / "model")


def odd(tensor: Tensor, kind: str) -> Tensor:
    dtype = getattr(torch, kind)
    return torch.zeros(tensor.shape, dtype=torch.uint8).view(dtype) if "float4" in kind else tensor.to(dtype)


def changed(folder: Path, *names: str, kind: str) -> Path:
    """The folder's weights with these tensors (all of them if none is named) in another dtype."""
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: odd(tensors[name], kind) for name in names or list(tensors)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def check_refused(folder: Path, target: Path, kind: str, name: str) -> None:
    refused = rf"{folder}: {name} holds numbers of {kind}, which hanmo only inspects; take the model in bf16"
    report = inspect_model(folder, deep=True)
    assert kind in report.dtypes and any(refused in check.detail for check in report.checks)
    with pytest.raises(CheckpointError, match=refused):
        open_model(folder, device="cpu")
    for dtype in (None, "fp16"):
        with pytest.raises(CheckpointError, match=refused):
            convert(folder, target, dtype=dtype)
    assert not target.exists()


@pytest.mark.parametrize("kind", ODD)
def test_one_tensor_of_odd_numbers_is_named(qwen: Path, tmp_path: Path, kind: str) -> None:
    folder = changed(shutil.copytree(qwen, tmp_path / "model"), UP, kind=kind)
    check_refused(folder, tmp_path / "target", kind, UP)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "complex64", "uint16"])
def test_whole_models_of_odd_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    """A folder of ours and an original."""
    ours = changed(save_model(tiny_eva(), tmp_path / "ours"), kind=kind)
    check_refused(ours, tmp_path / "target", kind, "decoder.blocks.0.attn.k_proj.weight")
    if kind != "uint16":  # of which torch's own files have no storage
        tensors = {name: odd(tensor, kind) for name, tensor in original_tensors(HUB).items()}
        check_refused(write_hub(tmp_path / "hub", tensors), tmp_path / "target", kind, "shared.weight")


def test_a_tensor_that_torch_quantised_is_refused_by_name(tmp_path: Path) -> None:
    tensors = original_tensors(HUB, torch.float32)
    tensors["lm_head.weight"] = torch.quantize_per_tensor(tensors["lm_head.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"asks for torch\._utils\._rebuild_qtensor, which weights do not need"):
        open_model(write_hub(tmp_path / "hub", tensors), device="cpu")


@pytest.mark.parametrize(("method", "needs"), [("gptq", "optimum"), ("awq", "gptqmodel")])
def test_packed_weights_are_inspected_and_need_what_unpacks_them(
    qwen: Path, tmp_path: Path, method: str, needs: str
) -> None:
    """The dtype to compute in is that of the scales, not of the packed integers."""
    folder = shutil.copytree(qwen, tmp_path / "model")
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors.pop(name).shape
        packed = {"qweight": torch.zeros(columns // 8, rows, dtype=torch.int32), "scales": torch.ones(1, rows).half()}
        packed["qzeros"] = torch.zeros(100, rows, dtype=torch.int32)
        tensors |= {f"{name.removesuffix('weight')}{key}": value for key, value in packed.items()}
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    weights = find_weights(folder)
    assert weights.numbers.most_common(1)[0][0] == torch.int32 and weights.dtype == torch.float16
    assert inspect_model(folder, deep=True).healthy
    with pytest.raises(CheckpointError, match=needs):
        open_model(folder, device="cpu")
    convert(folder, tmp_path / "copy")
    assert all(torch.equal(load_file(tmp_path / "copy" / "model.safetensors")[n], t) for n, t in tensors.items())


def test_the_dtype_of_a_model_in_fp8_is_that_of_its_other_numbers(qwen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(qwen, tmp_path / "model")
    changed(folder, kind="bfloat16")
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith("proj.weight")]
    changed(folder, *names, kind="float8_e4m3fn")
    assert find_weights(folder).dtype == torch.bfloat16
