"""Reads and writes generation_config.json of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from hanmo.families.base import Family
from hanmo.families.stops import stated
from hanmo.files import json_text, read_json, write_text


def read_generation(folder: Path) -> dict[str, Any]:
    """The content of the file; empty if there is none."""
    file = folder / GENERATION_CONFIG_NAME
    return read_json(file) if file.is_file() else {}


def write_generation(family: Family, folder: Path) -> None:
    """Write a model's stop tokens where transformers looks for them, beside the decoding settings that it came with."""
    before = family.generation or GenerationConfig.from_model_config(family.config).to_diff_dict()
    said = stated(before, family.stops, family.config, family.tokenizer)
    write_text(folder / GENERATION_CONFIG_NAME, json_text(said, indent=2) + "\n")
