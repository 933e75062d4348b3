"""The recorded EVA models as networks of ours, read straight through the name tables."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hanmo.families.eva import legacy
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.tables import Entry, expand
from tests.places import PARITY, load

EVA = PARITY / "eva"
MODELS = load(EVA / "models.json", {})
LAYOUTS = {layout.name: layout for layout in legacy.LAYOUTS}


def config(name: str) -> EvaConfig:
    return EvaConfig(**legacy.read_config(load(EVA / MODELS[name]["config"])))


def entries(name: str, layout: str) -> list[Entry]:
    return expand(LAYOUTS[layout].entries, config(name))


@cache
def weights(name: str, layout: str = "megatron") -> dict[str, Tensor]:
    """Our tensors, as the file stores them (fp16)."""
    path = EVA / MODELS[name]["checkpoint"]
    if layout == "hub":
        path = path.with_name(f"{path.name}_hub") / "pytorch_model.bin"
    else:
        path = path / str(MODELS[name]["iteration"]) / "mp_rank_00_model_states.pt"
    stored = torch.load(path, weights_only=True)
    stored = stored if layout == "hub" else stored["module"]
    ours = {}
    for entry in entries(name, layout):
        if entry.optional and entry.theirs not in stored:
            continue
        pieces = stored[entry.theirs].chunk(len(entry.ours))
        ours.update(zip(entry.ours, pieces, strict=True))
        assert all(torch.equal(stored[copy], stored[entry.theirs]) for copy in entry.copies)
    return ours


def network(name: str, layout: str = "megatron", dtype: torch.dtype = torch.float32) -> EvaModel:
    """A fresh network with the recorded weights, in evaluation mode."""
    ours = weights(name, layout)
    sizes = config(name)
    sizes.vocab_size = len(ours["word_embeds.weight"])
    model = EvaModel(sizes)
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected
    assert set(missing) <= {"role_embeds.weight"}
    return model.to(dtype).eval()


def hub_folder(name: str) -> Path:
    path = EVA / MODELS[name]["checkpoint"]
    return path.with_name(f"{path.name}_hub")
