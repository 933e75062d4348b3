"""Small original checkpoints on disk, with random weights, for the tests of checkpoints/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanmo.families.eva import legacy
from hanmo.families.eva.family import EvaFamily
from hanmo.families.tables import Layout, expand
from tests.unit.tiny import tiny_eva

MEGATRON = next(layout for layout in legacy.LAYOUTS if layout.container == "megatron")
HUB = next(layout for layout in legacy.LAYOUTS if layout.container == "bin")
SHAPE_KEYS = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "num_decoder_layers")


def original_tensors(layout: Layout, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The tiny EVA's weights under the original's names, one storage per group of copies."""
    state = tiny_eva().network.state_dict()
    tensors = {}
    for entry in expand(layout.entries, tiny_eva().network.config):
        whole = torch.cat([state[name] for name in entry.ours]).to(dtype)
        tensors.update(dict.fromkeys((entry.theirs, *entry.copies), whole))
    return tensors


def config_json(**changes: Any) -> dict[str, Any]:
    """The tiny EVA's configuration under the original's keys."""
    config = tiny_eva().network.config
    return {key: getattr(config, key) for key in SHAPE_KEYS} | {"attn_scale": config.attn_scale} | changes


def write_vocabulary(folder: Path) -> Path:
    (path,) = tiny_eva().tokenizer.save_vocabulary(str(folder))
    return Path(path)


def write_megatron(folder: Path, tensors: dict[str, Tensor] | None = None, iteration: int = 7, **state: Any) -> Path:
    """An unsplit original checkpoint with its tracker file and, beside it, vocabulary and configuration."""
    inside = folder / str(iteration)
    inside.mkdir(parents=True)
    content = {"module": tensors or original_tensors(MEGATRON), "iteration": iteration, "mp_world_size": 1, **state}
    torch.save(content, inside / "mp_rank_00_model_states.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    (folder / "model_config.json").write_text(json.dumps(config_json()))
    write_vocabulary(folder)
    return folder


def write_hub(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True)
    torch.save(tensors or original_tensors(HUB), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config_json(**config)))
    write_vocabulary(folder)
    return folder


def logits(network: Any) -> Tensor:
    """What a network of EVA says about one fixed input."""
    ids = torch.arange(9).reshape(1, -1) % network.config.vocab_size
    with torch.no_grad():
        return network(input_ids=ids, decoder_input_ids=ids[:, :5]).logits


FAMILY = EvaFamily
