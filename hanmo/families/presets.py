"""The published settings of each family, by stage: ``families/NAME/presets.yaml``."""

from pathlib import Path
from typing import Any

import yaml

from hanmo.errors import UnsupportedError, unknown
from hanmo.families import NAMES


def presets(name: str) -> dict[str, dict[str, Any]]:
    """A family's presets, without importing it: stage ("generation", …) -> name of the preset -> settings of that stage."""
    if name not in NAMES:
        raise UnsupportedError(unknown("family", name, NAMES))
    path = Path(__file__).with_name(name) / "presets.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
