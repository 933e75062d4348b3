"""The setting ``rewards``: names of rewards, or mappings of a name, a weight and options."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hanmo.errors import ConfigError


@dataclass(frozen=True)
class RewardSpec:
    """An entry of ``rewards``; ``name`` is how it is logged, ``options`` are arguments of its function."""

    reward: str
    name: str
    weight: float
    options: Mapping[str, Any]


def read_specs(rewards: Sequence[str | Mapping[str, Any]]) -> list[RewardSpec]:
    """The entries of ``rewards``; ConfigError if one is malformed, or two have the same name."""
    specs = [_read_spec(place, one) for place, one in enumerate(rewards)]
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise ConfigError(f"rewards: {name} is there {count} times; give each a name: {{reward: …, name: …}}")
    return specs


def _read_spec(place: int, given: str | Mapping[str, Any]) -> RewardSpec:
    entry = dict({"reward": given} if isinstance(given, str) else given)
    reward = entry.pop("reward", None)
    if not reward or not isinstance(reward, str):
        remark = "; YAML needs a space after a colon" if any(":" in str(key) for key in entry) else ""
        raise ConfigError(f"rewards[{place}]={given!r}: expected text, or {{reward: NAME, weight: 0.5}}{remark}")
    name, weight = entry.pop("name", reward), entry.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight == 0:
        raise ConfigError(f"rewards[{place}]: weight={weight!r} of {reward}: expected a number other than 0")
    if not name or not isinstance(name, str):
        raise ConfigError(f"rewards[{place}]: name={name!r} of {reward}: expected text")
    for key, value in entry.items():
        if not isinstance(key, str) or not _is_json(value):
            raise ConfigError(
                f"rewards[{place}]: {key}={value!r} of {reward}: expected text, numbers, lists or mappings"
            )
    return RewardSpec(reward, name, float(weight), entry)


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False
