"""Networks of recorded checkpoints whose vocabularies are too small for any tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from hanmo.checkpoints.locate import locate
from hanmo.checkpoints.open import load_network
from hanmo.checkpoints.originals.config_inference import infer_config
from hanmo.checkpoints.originals.recognise import Original
from tests.ranks import cut


def read_original(path: Path, config: Path | None = None) -> tuple[Original, PretrainedConfig, str | None]:
    """A complete original checkpoint, its configuration, and the name of its released size if it has one."""
    original = locate(path).original
    assert original is not None
    original.require_complete()
    return original, *infer_config(original, config=config)


def network(folder: Path, config: Path | None = None) -> Any:
    """The network alone, in fp32 and evaluation mode; ``config`` where the folder holds none."""
    original, inferred, _ = read_original(folder, config)
    return load_network(original, inferred, torch.float32, cut(inferred)).eval()
