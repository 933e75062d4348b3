"""docs/architecture.md names files, functions and classes: all of them exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`([\w/*]+\.(?:py|yaml|toml))`", TEXT)))
FOLDERS = sorted(set(re.findall(r"`([\w/]+/)`", TEXT)))
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)` \(`(\w+)(?:\.\w+)?`\)", TEXT)))  # `file.py` (`name`)


@pytest.mark.parametrize("name", FILES)
def test_a_file_exists(name: str) -> None:
    folders = (ROOT, ROOT / "hanmo")
    found = [path for folder in folders for path in folder.glob(name.replace("STAGE", "*"))]
    if "/" not in name:  # in the folder that the sentence is about
        found += list((ROOT / "hanmo").rglob(name))
    assert found


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_exists(name: str) -> None:
    assert any(path.is_dir() for path in (ROOT / "hanmo", ROOT) for path in [path / name, *path.glob(f"*/{name}")])


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_file_holds_what_is_named(file: str, name: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / "hanmo" / file).read_text(encoding="utf-8"))
