"""Writes model folders, complete or not at all."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from hanmo.checkpoints.open import RULES_FOLDER, quiet
from hanmo.errors import UnsupportedError
from hanmo.families.base import Family, OpenedModel
from hanmo.families.stops import stated
from hanmo.files import json_text, or_null, write_text
from hanmo.folders import new_folder
from hanmo.nn.cpu.int8 import is_int8
from hanmo.nn.tensor_parallel import is_cut, writes

SHARD_BYTES = 5_000_000_000
INDEX = "tensors.json"  # a content hash per tensor, of folders that a conversion wrote
_WEIGHT_FILE = re.compile(rf"(model|pytorch_model).*\.(safetensors|bin)(\.index\.json)?|{re.escape(INDEX)}")


def save_model(opened: OpenedModel, folder: str | Path, weights: dict[str, Tensor] | None = None) -> Path:
    """Write a model as a folder of ours, whole or not at all; other files of an existing folder stay.

    All ranks of a network split over several call this, and the first one writes it whole. ``weights``: all by name, if
    the network holds only a shard of them. CheckpointError if the folder cannot be written (a full disk), InUseError if
    another run writes it, UnsupportedError for a model in int8.
    """
    if is_int8(opened.network):
        raise UnsupportedError("a model in int8 is for inference only: open it in another dtype to train or save it")
    if not writes(opened.network):
        with tempfile.TemporaryDirectory() as nowhere, quiet():  # sends its slices to the rank that writes
            opened.network.save_pretrained(nowhere, **_untied(opened.network, weights))
        return Path(folder)
    with new_folder(folder, keep=is_no_weights) as draft:
        with quiet():
            opened.network.save_pretrained(draft, max_shard_size=SHARD_BYTES, **_untied(opened.network, weights))
        opened.tokenizer.save_pretrained(draft)
        save_rule_files(opened.family, draft)
        write_generation(opened.family, draft)
    return Path(folder)


def _untied(network: Any, weights: dict[str, Tensor] | None) -> dict[str, Any]:
    """Arguments of ``save_pretrained`` for weights cut over processes, whose ties transformers (5.23) does not see."""
    if weights is None and not is_cut(network):
        return {}
    weights, tied = network.state_dict() if weights is None else weights, network.all_tied_weights_keys
    return {"state_dict": {name: tensor for name, tensor in weights.items() if name not in tied}}


def save_rule_files(family: Family, folder: Path) -> None:
    """Copy the score rules' files, where ``open_model`` looks for them."""
    for role, source in family.assets.items():
        target = folder / RULES_FOLDER / family.asset_files[role]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def write_generation(family: Family, folder: Path) -> None:
    """Write generation_config.json: the stop tokens where transformers looks for them, and the model's own settings."""
    before = or_null(family.generation) or GenerationConfig.from_model_config(family.config).to_diff_dict()
    content = stated(before, family.stops, family.config, family.tokenizer)
    write_text(folder / GENERATION_CONFIG_NAME, json_text(content, indent=2) + "\n")


def is_no_weights(name: str) -> bool:
    """Whether an entry of a model folder stays when new weights are written."""
    return not _WEIGHT_FILE.fullmatch(name)
