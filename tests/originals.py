"""Networks of recorded checkpoints whose vocabularies are too small for any tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hanmo.checkpoints.open import load_network, read_original
from tests.ranks import cut


def network(folder: Path, config: Path | None = None) -> Any:
    """The network alone, in fp32 and evaluation mode; ``config`` where the folder holds none."""
    original, settled, _ = read_original(folder, config=config)
    return load_network(original, settled, torch.float32, cut(settled)).eval()
