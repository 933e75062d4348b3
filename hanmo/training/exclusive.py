"""One training in a run's folder at a time: of two, the second would overwrite what the first has learned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from hanmo.locks import holding_inside
from hanmo.training.settings import RunConfig

C = TypeVar("C", bound=RunConfig)
P = ParamSpec("P")
T = TypeVar("T")


def exclusive_run(stage: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
    """A stage that is the only one to write to the run's folder that its settings name; else it raises InUseError."""

    @functools.wraps(stage)
    def alone(config: C, *args: P.args, **kwargs: P.kwargs) -> T:
        with holding_inside(config.out):
            return stage(config, *args, **kwargs)

    return alone
