"""Presets: every one that ships says only what its stage knows."""

import pytest

from hanmo.config import load
from hanmo.errors import UnsupportedError
from hanmo.families import NAMES, presets
from hanmo.generation.settings import Settings
from hanmo.training.stages.sft import SftConfig

SHIPPED = [(family, name) for family in NAMES for name in presets(family).get("generation", {})]


@pytest.mark.parametrize(("family", "name"), SHIPPED)
def test_generation_presets_are_settings(family, name):
    Settings().change(**presets(family)["generation"][name])


def test_eva_as_published():
    chat, alone, static = (presets("eva")["generation"][name] for name in ("beam", "no-beam", "static"))
    keys = ("num_beams", "temperature", "top_p", "length_penalty", "repetition_penalty", "no_repeat_ngram_size")
    assert [chat[key] for key in keys] == [4, 0.9, 0.9, 1.6, 1.6, 3]
    assert [alone[key] for key in keys] == [1, 0.7, 0.9, 1.8, 1.6, 3]
    assert [static[key] for key in keys] == [1, 0.9, 0.9, 1.8, 1.2, 3]
    assert presets("eva")["sft"]["published"]["trainer"]["learning_rate"] == 1e-4


def test_unknown_family():
    with pytest.raises(UnsupportedError, match="did you mean eva"):
        presets("evaa")


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in NAMES for name in presets(family).get("sft", {})]
)
def test_fine_tuning_presets_are_settings(family, name):
    preset = presets(family)["sft"][name]
    config = load(SftConfig, preset, overrides=["model=m", "data=d"])
    assert {key: getattr(config, key) for key in preset} == preset
