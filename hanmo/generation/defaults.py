"""The decoding settings of a model: a preset of its family or its own, changed by the user."""

import sys
from collections.abc import Sequence
from typing import Any

from hanmo.config import load
from hanmo.errors import ConfigError, unknown
from hanmo.families import presets
from hanmo.families.base import OpenedModel
from hanmo.generation.settings import Settings
from hanmo.processes import main_process

PRESETS = ("no-beam", "published")  # the families' names for the settings of their interactive script
# The keys of generation_config.json that are used: those for sampling, not those for lengths and beam search.
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def decoding_presets(family: str, wanted: str | None) -> dict[str, Any]:
    """The decoding presets of a family, by name; raises ConfigError if ``wanted`` is none of them."""
    known = presets(family).get("generation", {})
    if wanted is None or wanted in known:
        return known
    raise ConfigError(unknown(f"decoding preset of {family}", wanted, known) if known else f"{family} has no presets")


def decoding_settings(
    opened: OpenedModel, preset: str | None, sets: Sequence[str] | None, seed: int | None, published: bool
) -> Settings:
    """The settings of a preset of the family, overridden by ``sets``, ``seed`` and ``published``.

    Without a preset: the model's own settings (``decoding`` in its config.json, or the sampling settings of its
    generation_config.json, which are printed), else the family's interactive ones, else the defaults.
    """
    known = decoding_presets(opened.family.name, preset)
    if preset is not None:
        base = known[preset]
    else:
        own = getattr(opened.family.config, "decoding", None)
        base = own or _of_the_folder(opened) or next((known[name] for name in PRESETS if name in known), {})
    chosen = load(Settings, base, overrides=sets or ())
    return chosen.change(seed=chosen.seed if seed is None else seed, published=published or chosen.published)


def _of_the_folder(opened: OpenedModel) -> dict[str, Any]:
    """The sampling settings of the model's generation_config.json; printed, as they are no defaults of hanmo."""
    given = {key: opened.family.generation.get(key) for key in SAMPLING}
    if given["temperature"] == 0:  # greedy decoding
        given |= {"temperature": None, "do_sample": False}
    found, wrong = {}, []
    for key, value in given.items():
        try:
            if value is not None:
                load(Settings, {key: value})
                found[key] = value
        except ConfigError:
            wrong.append(f"{key}={value!r}")
    file = "the model's generation_config.json"
    if wrong and main_process():
        print(f"hanmo: {file}: {', '.join(wrong)} is ignored", file=sys.stderr)
    if found and main_process():
        values = ", ".join(f"{key}={value}" for key, value in found.items())
        print(f"hanmo: decoding settings of {file}: {values}; key=value changes them", file=sys.stderr)
    return found
