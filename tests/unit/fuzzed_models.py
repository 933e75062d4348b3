"""Honest model folders of every class, and what reads them; see tests/fuzzing.py."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.adapter import ADAPTER_WEIGHTS
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.families.safe_loading import ADAPTER_CONFIG
from tests.fuzzing import Kind
from tests.hostile import command
from tests.unit.checkpoint_files import write_hub
from tests.unit.fuzzed_data import model_beside
from tests.unit.tiny import tiny, tiny_eva
from tests.unit.transformers_models import write_model


def of_folder(folder: Path, given: Sequence[str] = ()) -> Kind:
    """``given``: options with a name of a file in the folder, such as ("--config", "model_config.json")."""

    def options(folder: Path) -> dict[str, Path]:
        return {given[0].removeprefix("--"): folder / given[1]} if given else {}

    def generate(folder: Path, name: str) -> None:
        words = [given[0], folder / given[1]] if given else []
        command("generate", folder, "你好", "--device", "cpu", *words, "max_new_tokens=2")

    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return Kind(
        folder,
        tuple(names),
        (
            lambda folder, name: json.dumps(inspect_model(folder, **options(folder)).as_dict()),
            lambda folder, name: convert(folder, folder.parent / "target", force=True, **options(folder)),
            lambda folder, name: open_model(folder, device="cpu", **options(folder)),
            generate,
        ),
        whole=True,
    )


def converted(family: str, folder: Path) -> Kind:
    """Our own folder of a family, with rules where it has some."""
    save_model(tiny(family, folder.with_name(f"words of {family}")), folder)
    if family == "eva":
        (folder / "rules" / "antonym").mkdir(parents=True)
        (folder / "rules" / "antonym" / "antonym.txt").write_text("('好', '坏')\n('大', '小')\n", encoding="utf-8")
    return of_folder(folder)


def original(family: str, folder: Path) -> Kind:
    """The layout of the family's original code, in two ranks, with a configuration of its own."""
    ours, config = folder.with_name(f"ours {family}"), "model_config.json"
    save_model(tiny(family, folder.with_name(f"words of original {family}")), ours)
    convert(ours, folder, to="original", ranks=2)
    shutil.copyfile(ours / "config.json", folder / config)
    return of_folder(folder, ("--config", config))


def hub(folder: Path) -> Kind:
    return of_folder(write_hub(folder))


def split_transformers(folder: Path) -> Kind:
    """A model of transformers in several files, with their index."""
    whole = write_model("qwen3", folder)
    model = AutoModelForCausalLM.from_pretrained(whole)
    (whole / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return of_folder(folder)


def sequences(folder: Path) -> Kind:
    return of_folder(write_model("mt5", folder))


def adapters(folder: Path) -> Kind:
    """A LoRA adapter for a model beside its folder."""
    model = model_beside(folder)
    folder.mkdir()
    layers = {name: layer for name, layer in tiny_eva().network.named_modules() if isinstance(layer, nn.Linear)}
    tensors = {}
    for name, layer in list(layers.items())[:2]:
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(2, layer.in_features)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.ones(layer.out_features, 2)
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    lora = {"r": 2, "lora_alpha": 4, "alpha_pattern": {"q": 8}, "init_lora_weights": True, "use_rslora": False}
    config = {"peft_type": "LORA", **lora, "target_modules": ["q", "k"], "modules_to_save": ["norm"]}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    return Kind(
        folder,
        (ADAPTER_CONFIG, ADAPTER_WEIGHTS),
        (
            lambda folder, name: open_model(model, device="cpu", adapter=folder),
            lambda folder, name: convert(model, folder.parent / "target", adapter=folder, force=True),
        ),
        whole=True,
    )
