"""PanGu-α as it was released: sizes, the names of its tensors, and its configuration keys."""

from pathlib import Path
from typing import Any

from hanmo.families.weight_map import read_format

SIZES, _LAYOUTS, _SETTINGS = read_format(Path(__file__).with_suffix(".yaml"))
HF_BIN, REWARD_BIN, MEGATRON = LAYOUTS = tuple(_LAYOUTS.values())


def read_config(original: dict[str, Any]) -> dict[str, Any]:
    return {key: original[key] for key in _SETTINGS if key in original}
