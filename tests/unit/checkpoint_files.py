"""Small original checkpoints on disk, with random weights, for the tests of checkpoints/."""

import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanmo.families.base import OpenedModel
from hanmo.families.eva import original_format
from hanmo.families.eva.family import EvaFamily
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.families.weight_map import Layout, expand
from tests.unit import tiny

MEGATRON = next(layout for layout in original_format.LAYOUTS if layout.container == "megatron")
HUB = next(layout for layout in original_format.LAYOUTS if layout.container == "bin")
SHAPE_KEYS = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "num_decoder_layers")


def tiny_eva() -> OpenedModel:
    """A new tiny EVA with a vocabulary, and so an embedding, whose size 4 divides: it can be split."""
    return copy.deepcopy(_tiny_eva())


@functools.cache
def _tiny_eva() -> OpenedModel:
    """What the copies are made of; handed to no test."""
    tokens = list(tiny.tiny_eva().tokenizer.get_vocab())
    tokens += [f"filler{number}" for number in range(-len(tokens) % 4)]
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder) / "vocab.txt"
        vocab.write_text("\n".join(tokens), encoding="utf-8")
        tokenizer = EvaTokenizer(vocab_file=str(vocab))
    config = EvaConfig.from_dict({**tiny.tiny_eva().network.config.to_dict(), "vocab_size": len(tokens)})
    torch.manual_seed(0)
    return OpenedModel(EvaModel(config).eval(), EvaFamily(config, tokenizer), "a tiny EVA")


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
