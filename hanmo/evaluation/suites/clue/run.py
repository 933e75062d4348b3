"""Evaluate a model on CLUE, by the corrected protocol or the published one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hanmo.errors import ConfigError
from hanmo.evaluation.engine.distributed import mine
from hanmo.evaluation.results.result import GAP, Item, Result, TaskResult
from hanmo.evaluation.suites.clue import published
from hanmo.evaluation.suites.clue.reading import read_split
from hanmo.evaluation.suites.clue.tasks import ClueTask
from hanmo.evaluation.suites.runner import Run, Watch, about_run, check_seed, limit_of
from hanmo.evaluation.suites.task import Example, data_hash
from hanmo.families.base import OpenedModel

TITLE = "CLUE"
LIMIT = 1024


@dataclass(frozen=True)
class Setup:
    """How to evaluate.

    Attributes:
        shots: examples in the prompt.
        published: the published protocol, flaws included.
        limit: most tokens of a question; None is 1024 or what the model can read, and 512 as published.
        seed: of the draw of examples and of candidates; None is 0. The published protocol has its own.
        choices: so many candidates at most for tasks with many labels; None offers all.
        first: only the first records of every task.
        budget: tokens in memory at the same time; None suits the device. As published, prompts are scored one by one.
        candidates: file of the original's draws for IFLYTEK and TNEWS, see ``published.read_candidates``.
    """

    shots: int = 0
    published: bool = False
    limit: int | None = None
    seed: int | None = None
    choices: int | None = None
    first: int | None = None
    budget: int | None = None
    candidates: Path | None = None

    def __post_init__(self) -> None:
        if self.candidates is not None and not self.published:
            raise ConfigError("--candidates names the original's draws, which only the published protocol has")
        if self.published and self.choices is not None:
            raise ConfigError("--choices is for the corrected protocol; the published one always draws 3 wrong labels")
        if self.published and self.seed is not None:
            raise ConfigError(
                f"--seed is for the corrected protocol; the published one always draws with {published.SEED}"
            )
        if self.published and self.budget is not None:
            raise ConfigError("--budget is for the corrected protocol; the published one scores prompts one by one")
        check_seed(self.seed, self.shots, self.choices)

    def check(self, tasks: Sequence[ClueTask]) -> None:
        """Check that every given option has an effect on these tasks.

        Raises:
            ConfigError: one has none.
        """
        names = ", ".join(task.title for task in tasks)
        if self.candidates is not None and not any(task.published.drawn for task in tasks):
            raise ConfigError(f"--candidates names wrong labels of IFLYTEK and TNEWS; chosen are {names}")
        for option, value in (("--choices", self.choices), ("--budget", self.budget)):
            if value is not None and all(task.generates for task in tasks):
                raise ConfigError(f"{option} has no effect on {names}: the model says the answer, nothing is offered")


def evaluate(
    opened: OpenedModel, tasks: Sequence[ClueTask], data: str | Path, setup: Setup, cache: str | Path, watch: Watch
) -> Result:
    """Run tasks one after the other.

    Args:
        data: folder of CLUE's files, see ``reading.read_split``. All are read before the first question is asked.
        cache: folder in which answers are kept; what is in it is not asked again.
        watch: told what is going on.
    """
    setup.check(tasks)
    limit = (setup.limit or published.MAX_LENGTH) if setup.published else limit_of(opened, setup.limit, LIMIT)
    examples = {task.name: read_split(task, data, "dev", setup.first) for task in tasks}
    train = {}
    if setup.shots and not setup.published:
        train = {task.name: read_split(task, data, "train") for task in tasks}
    protocol, seed = ("published", published.SEED) if setup.published else ("corrected", setup.seed or 0)
    about = about_run(opened, protocol, setup.shots, limit, seed=seed)
    results = []
    for task in tasks:
        run = _ClueRun(opened, task, limit, Path(cache), about, watch(task.title), setup.budget, setup)
        found = examples[task.name]
        if setup.published:
            results.append(run.run_published_cmrc(found) if task.generates else run.run_published(found))
        else:
            results.append(run.corrected(found, train.get(task.name, []), setup.shots, seed, setup.choices))
    return Result(TITLE, about, results)


@dataclass
class _ClueRun(Run):
    """One task of CLUE being evaluated."""

    task: ClueTask
    setup: Setup

    def run_published(self, examples: list[Example]) -> TaskResult:
        task, setup, rng = self.task, self.setup, Random(published.SEED)
        notes, draws = [], None
        if task.published.drawn:
            draws = published.draw_candidates(task, examples, rng)
            if setup.candidates is not None:
                draws = published.read_candidates(setup.candidates, task, examples)
        own = draws is not None and draws.own
        if own:
            notes.append("published protocol, own draw: the original's wrong labels depended on the order of a set")
        items = published.build_items(task, examples, draws)
        prompts = [item.prompt for item in items]
        if setup.shots:
            pool = draws.labelled if draws and draws.labelled else prompts
            made = published.add_shots(self.opened.family, items, pool, setup.shots, rng, self.limit)
            prompts = [prompt.text for prompt in made]
            notes.append("the examples are drawn from the evaluated questions, wrong candidates included")
        with self.store([*self._asked_as_published(data_hash(examples)), prompts]) as store:
            missing = mine(store.missing(len(prompts)))
            scored = published.score_prompts(self.opened, [prompts[number] for number in missing], self.limit)
            for done, (place, score) in enumerate(scored, len(prompts) - len(missing) + 1):
                store.add(missing[place], [score.ppl, score.nll])
                self.progress(done, len(prompts))
            store.complete()
            values = [store.values[number] for number in range(len(prompts))]
        right, dropped = published.accuracy([ppl for ppl, _ in values], items)
        if dropped:
            notes.append(f"the last {dropped} prompts do not make a group and are left out")
        readings = {"published": list(map(float, right))}
        grouped = _grouped(task, examples, items, values)
        if all(len(item.options) > 1 for item in grouped):
            readings["shifted"] = [float(item.choice("shifted") == item.gold) for item in grouped]
        about = {"data": data_hash(examples), "task": task.hash(), "own draw": own}
        sizes = [len(item.candidates) for item in items]
        return self.result("published", readings, grouped, about, notes, sizes)

    def run_published_cmrc(self, examples: list[Example]) -> TaskResult:
        task = self.task
        with self.store(self._asked_as_published(data_hash(examples))) as store:
            for done, number in enumerate(mine(store.missing(len(examples))), 1):
                prompt = task.published.template.fill(examples[number].fields, "")
                store.add(number, published.answer(self.opened, prompt))
                self.progress(done, len(examples))
            store.complete()
            items = []
            for number, example in enumerate(examples):
                said = store.values[number]
                f1, em = published.token_f1(self.opened.family, said, example.answers)
                scores = {"f1": [f1], "em": [float(em)]}
                items.append(Item(example.where, example.fields["question"], example.answers, 0, scores, said))
        right = {name: [item.scores[name][0] for item in items] for name in ("f1", "em")}
        notes = ["examples were never put into these prompts"] if self.setup.shots else []
        return self.result("f1", right, items, {"data": data_hash(examples), "task": task.hash()}, notes, [])

    def _asked_as_published(self, data: str) -> list[Any]:
        return [*self.asked(data), self.task.published.template.text]


def _grouped(
    task: ClueTask, examples: Sequence[Example], items: Sequence[published.Item], values: Sequence[Sequence[float]]
) -> list[Item]:
    """The prompts of each record together, whatever the published counting makes of them."""
    places_of: list[list[int]] = [[] for _ in examples]
    for place, item in enumerate(items):
        places_of[item.example].append(place)
    found: list[Item] = []
    for example, places in zip(examples, places_of, strict=True):
        options = [items[place].candidates[rank] for rank, place in enumerate(places)]
        gold = items[places[0]].candidates.index(items[places[0]].label) if len(places) > 1 else 0
        scores = {
            "published": [-values[place][0] for place in places],
            "shifted": [-values[place][1] for place in places],
        }
        text = task.published.template.fill(example.fields, GAP)
        found.append(Item(example.where, text, tuple(options), gold, scores))
    return found
