"""Nothing of these models is foreign to transformers: there are no original layouts and no sizes of ours."""

from __future__ import annotations

from typing import Any

from hanmo.families.weight_map import Layout, Size

SIZES: dict[str, Size] = {}
LAYOUTS: tuple[Layout, ...] = ()


def read_config(original: dict[str, Any]) -> dict[str, Any]:
    """The configuration as it is."""
    return dict(original)
