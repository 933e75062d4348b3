"""The model families, one folder each. To add a family, add a folder and its name here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hanmo.errors import UnsupportedError, unknown

if TYPE_CHECKING:
    from hanmo.families.base import Family

OURS = ("eva", "transformer_xl", "pangu", "glm")  # families with networks of our own
TRANSFORMERS = "huggingface"  # the family of every other model of transformers
NAMES = (*OURS, TRANSFORMERS)


def load(name: str) -> type[Family]:
    """The Family class of a name; imports its folder (and torch) only now. UnsupportedError for an unknown name."""
    _check_name(name)
    return import_module(f"hanmo.families.{name}.family").FAMILY


def ours() -> list[type[Family]]:
    """The families with networks of ours; imports torch."""
    return [load(name) for name in OURS]


def presets(name: str) -> dict[str, dict[str, Any]]:
    """A family's published settings, without importing it: stage ("generation", …) -> name of the preset -> settings."""
    _check_name(name)
    path = Path(__file__).with_name(name) / "presets.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise UnsupportedError(unknown("family", name, NAMES))


def register() -> None:
    """Register our families with the auto classes of transformers; see ``hanmo.register``."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    for family in ours():
        config_class = family.config_class
        seq2seq = config_class().is_encoder_decoder
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto in (AutoModel, AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM):
            auto.register(config_class, family.network_class, exist_ok=True)
        AutoTokenizer.register(config_class, slow_tokenizer_class=family.tokenizer_class, exist_ok=True)
