"""Recipes: which steps, in which order, with which thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from hanmo import config
from hanmo.data.prepare.cleaning import duplicates, scorer, statistics, steps
from hanmo.data.prepare.cleaning.steps import Step
from hanmo.errors import ConfigError, unknown
from hanmo.files import package_yaml

STEPS: dict[str, type[Step]] = {
    "platform_markup": steps.PlatformMarkup,
    "urls": steps.Urls,
    "repeated_runs": steps.RepeatedRuns,
    "turn_count": steps.TurnCount,
    "length": steps.Length,
    "language": steps.Language,
    "symbols": steps.Symbols,
    "repetition": steps.Repetition,
    "repeats_previous": steps.RepeatsPrevious,
    "generic": steps.Generic,
    "personal": steps.Personal,
    "adverts": steps.Adverts,
    "words": steps.Words,
    "relevance": statistics.Relevance,
    "model_relevance": scorer.ModelRelevance,
    "fluency": statistics.Fluency,
}
DUPLICATES: dict[str, type[Any]] = {
    "same_sessions": duplicates.SameSessions,
    "same_utterances": duplicates.SameUtterances,
    "near_duplicates": duplicates.NearlySame,
}


@dataclass
class Recipe:
    """Steps that look at a record alone, then those that look for duplicates among what is left; each with its name."""

    steps: list[tuple[str, Any]]
    duplicates: list[tuple[str, Any]]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in (*self.steps, *self.duplicates)]

    def add(self, name: str, given: Mapping[str, Any], source: str) -> None:
        """Add a step with the settings ``given``; ``source``: where it was requested, for messages."""
        if name in self.names:
            raise ConfigError(f"{source}: step {name} comes twice")
        kind: type[Any] | None = STEPS.get(name) or DUPLICATES.get(name)
        if kind is None:
            raise ConfigError(f"{source}: {unknown('step', name, [*STEPS, *DUPLICATES])}")
        try:
            step = config.load(kind, preset=given)
        except ConfigError as error:
            raise ConfigError(f"{source}: step {name}: {error}") from None
        (self.steps if name in STEPS else self.duplicates).append((name, step))

    def settings(self) -> list[dict[str, Any]]:
        """Every step with all its settings, as a recipe file holds them."""
        found = []
        for name, step in (*self.steps, *self.duplicates):
            values = {f.name: getattr(step, f.name) for f in fields(step) if not f.name.startswith("_")}
            found.append({name: to_jsonable_python(values)})
        return found

    def files(self) -> list[Path]:
        """The files that steps read besides the records."""
        return [file for _, step in self.steps for file in step.files()]


@cache
def named() -> dict[str, list[Any]]:
    return dict(package_yaml("hanmo.data.prepare.cleaning", "recipes.yaml"))


def load(recipe: str) -> Recipe:
    """A recipe by name, or from a YAML file with a list of steps; ConfigError for a bad one."""
    if recipe in named():
        return build(named()[recipe], recipe)
    if not (path := Path(recipe)).is_file():
        raise ConfigError(f"{unknown('recipe', recipe, named())}, and no such file")
    return build(config.read_yaml(path), str(path))


def build(entries: Any, source: str) -> Recipe:
    """A recipe from a list of step names and ``{name: settings}``; ConfigError unless duplicates come last."""
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{source}: expected a list of steps, e.g. '- length: {{longest: 128}}'")
    recipe = Recipe([], [])
    for entry in entries:
        name, given = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
        if not isinstance(name, str) or not isinstance(given, dict | None):
            raise ConfigError(f"{source}: expected a step's name or {{name: settings}}, found {entry!r}")
        if name in STEPS and recipe.duplicates:
            raise ConfigError(f"{source}: {name} comes after {recipe.duplicates[-1][0]}; duplicates come last")
        recipe.add(name, given or {}, source)
    return recipe
