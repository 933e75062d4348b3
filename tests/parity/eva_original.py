"""The recorded EVA models, opened from their original files."""

from __future__ import annotations

from hanmo.checkpoints import open_model
from hanmo.families.eva import original_format
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.weight_map import TensorMapping, expand
from tests.places import PARITY, load
from tests.ranks import RANKS

EVA = PARITY / "eva"
MODELS = load(EVA / "models.json", {})
LAYOUTS = {layout.name: layout for layout in original_format.LAYOUTS}


def network(name: str, layout: str = "megatron", dtype: str = "fp32") -> EvaModel:
    """The network of a recorded model in evaluation mode, on the CPU, from one of its two on-disk forms."""
    model, path = MODELS[name], EVA / MODELS[name]["checkpoint"]
    if layout == "hub":
        return open_model(path.with_name(f"{path.name}_hub"), dtype=dtype, device="cpu", tensor_parallel=RANKS).network
    return open_model(
        path, config=EVA / model["config"], vocab=EVA / model["vocab"], dtype=dtype, device="cpu", tensor_parallel=RANKS
    ).network


def entries(config: EvaConfig, layout: str) -> list[TensorMapping]:
    """The name table of one on-disk form for a network's depth."""
    return expand(LAYOUTS[layout].entries, config)
