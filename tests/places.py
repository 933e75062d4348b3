"""Where the recorded cases and the real data lie; a test that needs them skips with the reason where they do not.

Tests are driven by the files they find: names, sizes and counts come from the files, so that another set of cases
in the same format runs without a change here.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

_SHARED = Path(__file__).resolve().parents[1].parent / "shared"
PARITY = Path(os.environ.get("HANMO_PARITY") or _SHARED / "parity")
DATA = Path(os.environ.get("HANMO_DATA") or _SHARED / "data")
VOCAB = PARITY.parent / "vocab"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set HANMO_DATA")


def needs_parity(family: str) -> pytest.MarkDecorator:
    """Mark for a whole module: skip where the recorded cases of a family are absent."""
    folder = PARITY / family
    return pytest.mark.skipif(not folder.is_dir(), reason=f"no recorded cases at {folder}; set HANMO_PARITY")


def load(path: Path, default: Any = ()) -> Any:
    """A JSON file of cases; ``default`` where the case set is absent, so that collection does not fail."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
