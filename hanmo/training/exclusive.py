"""Allows one training at a time per run folder: a second one would overwrite the first one's checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from hanmo.locks import holding_inside
from hanmo.training.config import RunConfig

C = TypeVar("C", bound=RunConfig)
P = ParamSpec("P")
T = TypeVar("T")


def exclusive_run(stage: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
    """Decorator of a training stage: it holds the lock of its run folder, and raises InUseError if another run does."""

    @functools.wraps(stage)
    def alone(config: C, *args: P.args, **kwargs: P.kwargs) -> T:
        with holding_inside(config.out):
            return stage(config, *args, **kwargs)

    return alone
