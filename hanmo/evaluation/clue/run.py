"""Evaluate a model on CLUE: ask, keep every answer at once, and put the results together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hanmo.errors import ConfigError
from hanmo.evaluation.candidates import score_candidates
from hanmo.evaluation.clue import cmrc, corrected, published
from hanmo.evaluation.clue.reading import read_split
from hanmo.evaluation.clue.results import ClueResult, Item, TaskResult
from hanmo.evaluation.clue.tasks import READINGS, Example, Task, data_hash
from hanmo.evaluation.processes import mine
from hanmo.evaluation.scoring import Progress, batches, computed_by, software
from hanmo.evaluation.store import Store, opened_store
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings

GAP = "____"
LIMIT = 1024
GENERATED_AT_ONCE = 8
Watch = Callable[[str], Progress]  # what is going on now -> told how far it is


@dataclass(frozen=True)
class Setup:
    """How to evaluate.

    Attributes:
        shots: examples in the prompt.
        published: the published protocol, flaws included.
        limit: most tokens of a question; None is 1024 or what the model can read, and 512 as published.
        seed: of the examples' draw (the published protocol has its own).
        choices: so many candidates at most for tasks with many labels; None offers all.
        first: only the first records of every task.
        budget: tokens in memory at the same time; None suits the device.
        candidates: file of the original's draws for IFLYTEK and TNEWS, see ``published.read_candidates``.
    """

    shots: int = 0
    published: bool = False
    limit: int | None = None
    seed: int = 0
    choices: int | None = None
    first: int | None = None
    budget: int | None = None
    candidates: Path | None = None

    def __post_init__(self) -> None:
        if self.candidates is not None and not self.published:
            raise ConfigError("--candidates names the original's draws, which only the published protocol has")
        if self.published and self.choices is not None:
            raise ConfigError("--choices is for the corrected protocol; the published one always draws 3 wrong labels")


def evaluate(
    opened: OpenedModel, tasks: Sequence[Task], data: str | Path, setup: Setup, cache: str | Path, watch: Watch
) -> ClueResult:
    """Run tasks one after the other.

    Args:
        data: folder of CLUE's files, see ``reading.read_split``. All are read before the first question is asked.
        cache: folder in which answers are kept; what is in it is not asked again.
        watch: told what is going on.
    """
    limit = _limit(opened, setup)
    examples = {task.name: read_split(task, data, "dev", setup.first) for task in tasks}
    train = {}
    if setup.shots and not setup.published:
        train = {task.name: read_split(task, data, "train") for task in tasks}
    about: dict[str, Any] = {
        "model": opened.source,
        "family": opened.family.name,
        **computed_by(opened),
        "protocol": "published" if setup.published else "corrected",
        "shots": setup.shots,
        "limit": limit,
        "seed": published.SEED if setup.published else setup.seed,
        **software(),
    }
    results = []
    for task in tasks:
        run = _Run(opened, task, setup, limit, Path(cache), about, watch(task.title))
        found = examples[task.name]
        if setup.published:
            results.append(run.run_published_cmrc(found) if task.generates else run.run_published(found))
        else:
            results.append(run.run_corrected(found, train.get(task.name, [])))
    return ClueResult(about, results)


def _limit(opened: OpenedModel, setup: Setup) -> int:
    if setup.published:
        return setup.limit or published.MAX_LENGTH
    positions = getattr(opened.network.config, "max_position_embeddings", None)
    if setup.limit is not None and positions is not None and setup.limit > positions:
        raise ConfigError(f"--limit {setup.limit}: this model has {positions} positions; give at most that")
    return setup.limit or min(LIMIT, positions or LIMIT)


@dataclass
class _Run:
    """One task being evaluated."""

    opened: OpenedModel
    task: Task
    setup: Setup
    limit: int
    cache: Path
    about: dict[str, Any]
    progress: Progress

    def run_corrected(self, examples: list[Example], train: Sequence[Example]) -> TaskResult:
        task, setup, family = self.task, self.setup, self.opened.family
        data = data_hash(examples)
        if setup.choices is not None:
            examples = list(corrected.fewer_options(examples, setup.choices, setup.seed))
        shots = corrected.draw_shots(family, task, train, setup.shots, self.limit, setup.seed) if setup.shots else []
        lead = corrected.lead_of(task, shots)
        asked = [*self._asked(data), setup.choices, setup.seed, lead]
        plan = corrected.plan(family, task, examples, lead, self.limit)
        with self._store(asked) as store:
            if task.generates:
                self._generate(plan, store)
                items = [_generated(task, example, store.values[n]) for n, example in enumerate(examples)]
            else:
                self._score(plan, store)
                items = [_scored(task, plan, number, store) for number in range(len(examples))]
        about = {"data": data, "task": task.hash(), "shots": [shot.where for shot in shots]}
        notes = []
        if setup.choices is not None and any(len(one.options) == setup.choices for one in examples):
            notes.append(f"{setup.choices} candidates offered, the wrong ones drawn at random")
        if len(shots) < setup.shots:
            notes.append(f"only {len(shots)} examples in the training split")
        readings: Sequence[str] = ("f1", "em") if task.generates else READINGS
        right = {
            name: [item.scores[name][0] if task.generates else float(item.choice(name) == item.gold) for item in items]
            for name in readings
        }
        return self._result(task.reading, right, items, about, notes, [len(one.options) for one in examples])

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
        with self._store([*self._asked(data_hash(examples)), prompts]) as store:
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
        return self._result("published", readings, grouped, about, notes, sizes)

    def run_published_cmrc(self, examples: list[Example]) -> TaskResult:
        task = self.task
        with self._store(self._asked(data_hash(examples))) as store:
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
        return self._result("f1", right, items, {"data": data_hash(examples), "task": task.hash()}, notes, [])

    def _score(self, plan: corrected.Plan, store: Store) -> None:
        """Questions first, then the candidates without the records' text, all in one list by number."""
        everything = [*plan.questions, *plan.priors]
        missing = mine(store.missing(len(everything)))
        score_candidates(
            self.opened,
            [everything[number] for number in missing],
            budget=self.setup.budget,
            progress=self.progress,
            on_scored=lambda place, scores: store.add(missing[place], [[-one.nll, one.tokens] for one in scores]),
        )
        store.complete()

    def _generate(self, plan: corrected.Plan, store: Store) -> None:
        settings = Settings(max_new_tokens=corrected.NEW_TOKENS, do_sample=False, rule_files=False)
        missing = mine(store.missing(len(plan.contexts)))
        done = len(plan.contexts) - len(missing)
        for chosen in batches([len(plan.contexts[number].ids) for number in missing], GENERATED_AT_ONCE):
            numbers = [missing[place] for place in chosen]
            found = generate(self.opened, [plan.contexts[number] for number in numbers], settings)
            for number, generation in zip(numbers, found, strict=True):
                store.add(number, corrected.answer_of(self.opened.family.decode(generation.ids)))
            done += len(numbers)
            self.progress(done, len(plan.contexts))
        store.complete()

    def _asked(self, data: str) -> list[Any]:
        about = {name: self.about[name] for name in ("weights", "config", "precision", "protocol", "shots", "limit")}
        return [about, data, self.task.hash(), self.task.published.template.text if self.setup.published else ""]

    def _store(self, asked: list[Any]) -> AbstractContextManager[Store]:
        return opened_store(self.cache, f"{self.task.name}-{self.about['protocol']}", asked)

    def _result(
        self,
        reading: str,
        right: dict[str, list[float]],
        items: list[Item],
        about: dict[str, Any],
        notes: list[str],
        sizes: list[int],
    ) -> TaskResult:
        task = self.task
        generated = task.generates
        return TaskResult(
            name=task.name,
            title=task.title,
            metric="F1" if generated else "accuracy",
            reading=reading,
            right=right,
            chance=None if generated else sum(1 / size for size in sizes) / len(sizes),
            labels=bool(task.labels),
            items=items,
            about=about,
            notes=notes,
        )


def _scored(task: Task, plan: corrected.Plan, number: int, store: Store) -> Item:
    example = plan.examples[number]
    sums, tokens = zip(*store.values[number], strict=True)
    priors = [total for total, _ in store.values[len(plan.questions) + plan.prior_of[number]]]
    scores = {str(name): values for name, values in corrected.read_scores(sums, tokens, priors).items()}
    return Item(example.where, task.template.fill(example.fields, GAP), example.options, example.gold, scores)


def _generated(task: Task, example: Example, said: str) -> Item:
    scores = {"f1": [cmrc.f1(said, example.answers)], "em": [float(cmrc.exact(said, example.answers))]}
    return Item(example.where, task.template.fill(example.fields, GAP), example.answers, 0, scores, said)


def _grouped(
    task: Task, examples: Sequence[Example], items: Sequence[published.Item], values: Sequence[Sequence[float]]
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
