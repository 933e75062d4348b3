"""Writing model folders: complete or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from hanmo.checkpoints.generation import write_generation
from hanmo.checkpoints.opening import RULES, quiet
from hanmo.errors import CheckpointError, UnsupportedError
from hanmo.families.base import Family, OpenedModel
from hanmo.families.int8 import is_int8
from hanmo.families.parallel import is_cut, writes

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
        UnsupportedError: a model in int8.
    """
    if is_int8(opened.network):
        raise UnsupportedError("a model in int8 is for inference only: open it in another dtype to train or save it")
    if not writes(opened.network):
        with tempfile.TemporaryDirectory() as nowhere, quiet():
            # Gives its slices to the rank that writes.
            opened.network.save_pretrained(nowhere, **_untied(opened.network, weights))
        return Path(folder)
    with new_folder(folder, keep=True) as draft:
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
        target = folder / RULES / family.rule_files[role]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


@contextlib.contextmanager
def new_folder(folder: str | Path, keep: bool = False) -> Iterator[Path]:
    """A folder to write to that takes its real name when the block ends without an error, and vanishes otherwise.

    Args:
        keep: what an existing folder of that name holds beside weights and the files written anew is kept.
    """
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        finish_folder(folder, draft, keep)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}; nothing has been changed") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def finish_folder(folder: Path, draft: Path, keep: bool) -> None:
    """Give a draft, once all of it is on the disk, its real name; ``keep`` as for ``new_folder``."""
    for file in draft.rglob("*"):
        _flush(file)
    _replace(folder, draft, keep)


def _flush(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _replace(folder: Path, draft: Path, keep: bool) -> None:
    if not folder.exists():
        draft.rename(folder)
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; give a folder")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(old)
    draft.rename(folder)
    if keep:
        for item in old.iterdir():
            if not (folder / item.name).exists() and not _WEIGHT_FILE.fullmatch(item.name):
                item.rename(folder / item.name)
    shutil.rmtree(old)
