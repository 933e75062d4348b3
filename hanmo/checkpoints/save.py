"""Writing model folders: complete or not at all."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from hanmo.checkpoints.generation_config import write_generation
from hanmo.checkpoints.open import RULES, quiet
from hanmo.errors import UnsupportedError
from hanmo.families.base import Family, OpenedModel
from hanmo.folders import new_folder
from hanmo.nn.cpu.int8 import is_int8
from hanmo.nn.tensor_parallel import is_cut, writes

SHARD_BYTES = 5_000_000_000
INDEX = "tensors.json"  # a content hash per tensor, of folders that a conversion wrote
_WEIGHT_FILE = re.compile(rf"(model|pytorch_model).*\.(safetensors|bin)(\.index\.json)?|{re.escape(INDEX)}")


def save_model(opened: OpenedModel, folder: str | Path, weights: dict[str, Tensor] | None = None) -> Path:
    """Write a model as a folder of ours: weights, configuration, tokenizer and rule files.

    What else lies in an existing folder stays there. Until everything is written the old content is untouched. Of a
    network that is cut over several ranks, all ranks call this and the first one writes it whole.

    Args:
        weights: all of them, by name, where the network itself holds but a share.

    Raises:
        CheckpointError: the folder cannot be written (a full disk), and nothing has changed.
        InUseError: another run writes it.
        UnsupportedError: a model in int8.
    """
    if is_int8(opened.network):
        raise UnsupportedError("a model in int8 is for inference only: open it in another dtype to train or save it")
    if not writes(opened.network):
        with tempfile.TemporaryDirectory() as nowhere, quiet():
            # Gives its slices to the rank that writes.
            opened.network.save_pretrained(nowhere, **_untied(opened.network, weights))
        return Path(folder)
    with new_folder(folder, keep=is_no_weights) as draft:
        with quiet():
            opened.network.save_pretrained(draft, max_shard_size=SHARD_BYTES, **_untied(opened.network, weights))
        opened.tokenizer.save_pretrained(draft)
        save_rules(opened.family, draft)
        write_generation(opened.family, draft)
    return Path(folder)


def _untied(network: Any, weights: dict[str, Tensor] | None) -> dict[str, Any]:
    """What ``save_pretrained`` is told of weights that lie over processes: transformers (5.23) does not see which of them are the same."""
    if weights is None and not is_cut(network):
        return {}
    weights = network.state_dict() if weights is None else weights
    return {
        "state_dict": {name: tensor for name, tensor in weights.items() if name not in network.all_tied_weights_keys}
    }


def save_rules(family: Family, folder: Path) -> None:
    """Copy the score rules' files, where ``open_model`` looks for them."""
    for role, source in family.assets.items():
        target = folder / RULES / family.asset_files[role]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def is_no_weights(name: str) -> bool:
    """Whether an entry of a model folder is kept when new weights are written."""
    return not _WEIGHT_FILE.fullmatch(name)
