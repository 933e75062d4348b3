"""Rewards that are functions: what fails or hangs stops the run with the reward and the record named."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hanmo.errors import ConfigError
from hanmo.training.rl.rewards.specs import RewardSpec
from hanmo.training.rl.rollout import Sample
from hanmo.verify import Scores
from hanmo.verify.functions import JudgeError, can_interrupt, judged_in_time, load_judge, runs_code
from hanmo.verify.process import JudgeProcess


def function_reward(spec: RewardSpec, seconds: float, process: bool) -> Callable[[Sequence[Sample]], Scores]:
    """A reward that calls a function, for at most so many seconds; a ConfigError then or if it fails.

    ``process``: in a process of its own, as are functions that run code, and all where none can be interrupted.
    """
    watched = _Watched(spec, process or runs_code(spec.reward))

    def score(samples: Sequence[Sample]) -> Scores:
        try:
            return watched.call(samples, seconds)
        except JudgeError as error:
            place, problem = _culprit(watched, samples, seconds, error)
        raise ConfigError(f"rewards: {spec.name}: {problem}; {named(samples, place)}")

    return score


class _Watched:
    """A function, here or in a process of its own."""

    def __init__(self, spec: RewardSpec, process: bool):
        self.spec, self.judge = spec, load_judge(spec.reward, spec.options)
        self.process = JudgeProcess(spec.reward, spec.options) if process else None

    def ready(self) -> None:
        """Start the process, which is not the function's time."""
        if self.process is None and not can_interrupt():
            self.process = JudgeProcess(self.spec.reward, self.spec.options)
        if self.process is not None:
            self.process.start()

    def call(self, samples: Sequence[Sample], seconds: float) -> Scores:
        """What the function says of replies; a JudgeError if it fails or takes longer."""
        self.ready()
        given = _given(samples)
        return self.process(*given, seconds) if self.process else judged_in_time(self.judge, *given, seconds)


def _given(samples: Sequence[Sample]) -> tuple[list[str], list[str], list[Mapping[str, Any]]]:
    """Prompts, replies and records, which are copies: a function may change them."""
    prompts, replies = [sample.prompt for sample in samples], [sample.reply for sample in samples]
    return prompts, replies, [copy.deepcopy(sample.fields) for sample in samples]


def _culprit(watched: _Watched, samples: Sequence[Sample], seconds: float, error: JudgeError) -> tuple[int | None, str]:
    """The first reply on which the function fails alone, and how; None and the first problem if there is none.

    The function gets no more than ``seconds`` again for all of them.
    """
    if error.place is not None or len(samples) == 1:
        return error.place or 0, error.problem
    left = seconds
    for place, sample in enumerate(samples):
        watched.ready()
        start = time.monotonic()
        try:
            watched.call([sample], left)
        except JudgeError as alone:
            if time.monotonic() - start < left:
                return place, alone.problem
            return (place if left > seconds / 2 else None), error.problem  # cut short, the last one may be innocent
        left -= time.monotonic() - start
        if left <= 0:
            break
    return None, error.problem


def named(samples: Sequence[Sample], place: int | None) -> str:
    """A reply and its record in messages; ``place`` None: no single one of them."""
    if place is None:
        return f"no single reply was found to cause it; the first of {len(samples)} is to the record {samples[0].record.where}"
    return f"the reply {samples[place].reply[:40]!r} to the record {samples[place].record.where}"
