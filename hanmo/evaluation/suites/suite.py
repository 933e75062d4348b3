"""A suite: tasks that are evaluated together, the reader of their files, and the protocols to evaluate them by."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hanmo.errors import ConfigError
from hanmo.evaluation.results.result import TaskResult
from hanmo.evaluation.suites.task import Example, Task

LIMIT = 1024
ALWAYS = ("shots", "published", "first", "limit")  # options that every protocol has


@dataclass(frozen=True)
class Options:
    """How a suite is evaluated."""

    shots: int = 0  # few-shot examples in the prompt
    published: bool = False  # use the published protocol, flaws included
    first: int | None = None  # evaluate only so many examples of every task
    limit: int | None = None  # most tokens of a question; by default the protocol's, within the model's positions
    budget: int | None = None  # tokens in memory at the same time; by default what suits the device
    split: str | None = None  # by default the suite's first one
    seed: int | None = None  # of the draw of few-shot examples and candidates; 0 by default
    choices: int | None = None  # offer so many candidates at most
    chat: bool = False  # ask in the model's chat template
    cot: bool = False  # the few-shot examples explain their answers
    candidates: Path | None = None  # file of the original's wrong candidates, see clue.suite.read_candidates


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate the tasks of a suite.

    ``evaluate`` evaluates one task, given a ``runner.TaskRun``, the examples, and those that few-shot examples are
    taken from; None is ``runner.corrected``.
    """

    evaluate: Callable[[Any, list[Example], list[Example]], TaskResult] | None = None
    limit: int = LIMIT  # most tokens of a question, unless options say otherwise
    # The split that few-shot examples are taken from; None: ``evaluate`` takes them from elsewhere.
    pool: str | None = "train"
    seed: int | None = None  # fixed seed, where the protocol has one
    # Those with an effect, besides ``ALWAYS``.
    options: Collection[str] = ("budget", "split", "seed", "choices", "chat")
    refused: Mapping[str, str] = field(default_factory=dict)  # messages for options that have none


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are evaluated together.

    Attributes:
        read: ``read(task, split, first)`` returns the examples of a split, only so many if ``first`` is a number; it
            raises ``RecordError`` for a bad record.
        first_shots: few-shot examples are the first of the pool, the last left out where a question has no room for
            them; without it they are a balanced random draw.
    """

    name: str  # of its folder in the cache
    title: str  # of its results
    tasks: Sequence[Task]
    read: Callable[[Any, str, int | None], list[Example]]
    splits: Sequence[str] = ("dev",)  # those that may be evaluated, the default first
    corrected: Protocol = Protocol()
    published: Protocol | None = None
    first_shots: bool = False
    id_field: str = ""  # field of an example that identifies it in submission.json; "" writes no such file

    def protocol(self, options: Options) -> Protocol:
        """The protocol that the options choose.

        Raises:
            ConfigError: there is no published protocol, or an option has no effect.
        """
        protocol = self.published if options.published else self.corrected
        if protocol is None:
            raise ConfigError(f"--published: the original has no {self.title}; evaluate it without")
        for option in fields(options):
            given = getattr(options, option.name) != option.default
            if given and option.name not in (*ALWAYS, *protocol.options):
                without = f"--{option.name} has no effect on {self.title}; leave it out"
                raise ConfigError(protocol.refused.get(option.name, without))
        if options.seed is not None and not options.shots and options.choices is None:
            raise ConfigError(f"--seed {options.seed}: nothing is drawn without --shots or --choices; leave it out")
        for name, value in (("--choices", options.choices), ("--budget", options.budget)):
            if value is not None and all(task.generates for task in self.tasks):
                titles = ", ".join(task.title for task in self.tasks)
                raise ConfigError(f"{name} has no effect on {titles}: the model generates the answer")
        return protocol
