"""The stages of training, one module each, which this does not import; a module's docstring is its command's help."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hanmo.files import package_yaml

if TYPE_CHECKING:
    from hanmo.training.lifecycle import Stage

NAMES = ("pretrain", "sft", "reward", "dpo", "kto", "grpo", "ppo")


def load_stage(name: str) -> Stage:
    """The stage of this name."""
    stage: Stage = import_module(f"{__name__}.{name}").STAGE
    return stage


def presets(name: str) -> dict[str, dict[str, Any]]:
    """A stage's settings of publications that fit models of any family, by the name of the preset."""
    found: dict[str, dict[str, Any]] = package_yaml(__name__, "presets.yaml").get(name, {})
    return found
