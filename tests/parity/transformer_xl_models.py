"""The recorded Transformer-XL checkpoints as networks of ours, whatever their vocabulary."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from hanmo.checkpoints.open import load_network
from hanmo.families.transformer_xl.family import TransformerXLFamily
from hanmo.families.transformer_xl.modeling import TransformerXLConfig, TransformerXLModel
from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer
from tests.originals import read_original
from tests.places import PARITY, VOCAB, load
from tests.ranks import cut

FOLDER = PARITY / "transformer_xl"
CONFIGS = load(FOLDER / "checkpoints" / "inventory.json", {"configs": {}})["configs"]
VOCABULARY = VOCAB / "cog-pretrain.model"


def network(checkpoint: str, dtype: torch.dtype = torch.float32, **changes: Any) -> TransformerXLModel:
    """A recorded checkpoint, with ``changes`` of its configuration, in evaluation mode.

    Half-precision positions are asked for by ``changes`` only: most recordings widened the weights first.
    """
    name = checkpoint.split()[0]
    recorded = next(facts for names, facts in CONFIGS.items() if name.startswith(names.split()[0]))
    config = {
        "vocab_size": recorded["vocab"],
        "hidden_size": recorded["hidden"],
        "num_layers": recorded["num_layers"],
        "num_heads": recorded["heads"],
        "relative": recorded["relative_encoding"],
        "max_position_embeddings": recorded.get("max_pos", 0),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config))
        # Nothing but a configuration says how many heads the absolute variant has.
        original, settled, _ = read_original(FOLDER / "checkpoints" / name, config=None if config["relative"] else file)
    settled.half_positions = False
    for key, value in changes.items():
        setattr(settled, key, value)
    return load_network(original, settled, dtype, cut(settled)).eval()


def decoder(checkpoint: str, memory: int, **changes: Any) -> TransformerXLModel:
    """A network that sees ``memory`` tokens before its own when it decodes."""
    return network(checkpoint, segment_length=memory + 1, memory_length=0, **changes)


def family(config: TransformerXLConfig) -> TransformerXLFamily:
    return TransformerXLFamily(config, TransformerXLTokenizer(vocab_file=str(VOCABULARY)))
