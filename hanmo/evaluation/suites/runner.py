"""One task being evaluated: ask, keep every answer at once, and put the result together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanmo.errors import ConfigError
from hanmo.evaluation.engine.cache import Store, opened_store
from hanmo.evaluation.engine.candidates import score_candidates
from hanmo.evaluation.engine.distributed import mine
from hanmo.evaluation.engine.row_scores import Progress, batches, computed_by, software
from hanmo.evaluation.results.result import GAP, Item, TaskResult
from hanmo.evaluation.suites import cmrc, prompting
from hanmo.evaluation.suites.prompting import Candidates, Front, Plan
from hanmo.evaluation.suites.task import OPTION, READINGS, Example, Task, data_hash
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings

GENERATED_AT_ONCE = 8
Watch = Callable[[str], Progress]  # what is going on now -> told how far it is


def limit_of(opened: OpenedModel, wanted: int | None, default: int) -> int:
    """Most tokens of a question: what is wanted, or the default, within what the model has positions for."""
    positions = getattr(opened.network.config, "max_position_embeddings", None)
    if wanted is not None and positions is not None and wanted > positions:
        raise ConfigError(f"--limit {wanted}: this model has {positions} positions; give at most that")
    return wanted or min(default, positions or default)


def check_seed(seed: int | None, shots: int, choices: int | None) -> None:
    """Check that a given seed has an effect.

    Raises:
        ConfigError: nothing is drawn.
    """
    if seed is not None and not shots and choices is None:
        raise ConfigError(f"--seed {seed}: nothing is drawn without --shots or --choices; leave it out")


def check_chat(opened: OpenedModel, task: Task) -> None:
    """Whether a task can be asked as a conversation.

    Raises:
        ConfigError: the model has no chat template, or something follows the answer.
    """
    if not opened.tokenizer.chat_template:
        raise ConfigError(f"--chat: {opened.source} has no chat template; ask it without, in running text")
    if not task.template.text.endswith(OPTION):
        raise ConfigError(
            f"--chat: {task.title} goes on after the candidate, which a conversation cannot; leave it out"
        )


def about_run(opened: OpenedModel, protocol: str, shots: int, limit: int, **more: Any) -> dict[str, Any]:
    """What the numbers of a run hang on."""
    return {
        "model": opened.source,
        "family": opened.family.name,
        **computed_by(opened),
        "protocol": protocol,
        "shots": shots,
        "limit": limit,
        **more,
        **software(),
    }


@dataclass
class Run:
    """One task being evaluated.

    Attributes:
        cache: folder in which answers are kept; what is in it is not asked again.
        about: what the run's numbers hang on.
        budget: tokens in memory at the same time; None suits the device.
    """

    opened: OpenedModel
    task: Task
    limit: int
    cache: Path
    about: dict[str, Any]
    progress: Progress
    budget: int | None

    def corrected(
        self,
        examples: list[Example],
        train: Sequence[Example],
        shots: int,
        seed: int,
        choices: int | None = None,
        chat: bool = False,
    ) -> TaskResult:
        """The result by the corrected protocol, with examples in the prompt that are drawn from ``train``.

        Args:
            choices: so many candidates at most; None offers all.
        """
        task, family, data = self.task, self.opened.family, data_hash(examples)
        if choices is not None:
            examples = list(prompting.fewer_options(examples, choices, seed))

        def draw(pool: Sequence[Example]) -> list[Example]:
            return prompting.draw_shots(family, task, pool, shots, self.limit, seed) if shots else []

        drawn = draw(train)
        fronts, itself = prompting.fronts_of(task, examples, train, draw, chat)
        items, notes = self.ask(examples, [[front] for front in fronts])
        notes += among_the_examples(itself)
        about = {"data": data, "task": task.hash(), "shots": [shot.where for shot in drawn]}
        if choices is not None and any(len(one.options) == choices for one in examples):
            notes.append(f"{choices} candidates offered, the wrong ones drawn at random")
        if len(drawn) < shots:
            notes.append(f"only {len(drawn)} examples in the training split")
        sizes = [len(one.options) for one in examples]
        return self.result(task.reading, values_of(task, items), items, about, notes, sizes)

    def ask(self, examples: Sequence[Example], fronts: Sequence[Sequence[Front]]) -> tuple[list[Item], list[str]]:
        """Every question behind the first of its fronts that leaves room for it, and remarks on how they were asked."""
        task = self.task
        plan = prompting.plan(self.opened.family, task, examples, fronts, self.limit)
        texts = dict.fromkeys(offered[0].text() for offered in fronts)
        asked = [*self.asked(data_hash(examples)), *texts, fronts[0][0].chat]
        with self.store(asked) as store:
            if task.generates:
                self._generate(plan, store)
                return [_generated(task, example, store.values[n]) for n, example in enumerate(examples)], []
            self.score([*plan.questions, *plan.priors], store)  # in one list, by number
            items = [_scored(task, plan, number, store) for number in range(len(examples))]
        fewer = sum(count < len(offered[0].shots) for count, offered in zip(plan.shots, fronts, strict=True))
        return items, [f"{fewer} questions left no room for all examples"] if fewer else []

    def result(
        self,
        reading: str,
        right: dict[str, list[float]],
        items: list[Item],
        about: dict[str, Any],
        notes: list[str],
        sizes: list[int],
    ) -> TaskResult:
        """The task's result; ``sizes`` are the numbers of candidates, of which guessing takes one."""
        task = self.task
        return TaskResult(
            name=task.name,
            title=task.title,
            metric="F1" if task.generates else "accuracy",
            reading=reading,
            right=right,
            chance=None if task.generates else sum(1 / size for size in sizes) / len(sizes),
            labels=bool(task.labels),
            items=items,
            about=about,
            notes=notes,
            groups=task.groups,
            place=task.place,
        )

    def asked(self, data: str) -> list[Any]:
        """What any answer hangs on."""
        about = {name: self.about[name] for name in ("weights", "config", "precision", "protocol", "shots", "limit")}
        return [about, data, self.task.hash()]

    def store(self, asked: list[Any]) -> AbstractContextManager[Store]:
        return opened_store(self.cache, f"{self.task.name}-{self.about['protocol']}", asked)

    def score(self, questions: Sequence[Candidates], store: Store) -> None:
        """Score what the store has no answer to, this process's share of it: for each candidate [log p, tokens]."""
        missing = mine(store.missing(len(questions)))
        score_candidates(
            self.opened,
            [questions[number] for number in missing],
            budget=self.budget,
            progress=self.progress,
            on_scored=lambda place, scores: store.add(missing[place], [[-one.nll, one.tokens] for one in scores]),
        )
        store.complete()

    def _generate(self, plan: Plan, store: Store) -> None:
        settings = Settings(max_new_tokens=prompting.NEW_TOKENS, do_sample=False, rule_files=False)
        missing = mine(store.missing(len(plan.contexts)))
        done = len(plan.contexts) - len(missing)
        for chosen in batches([len(plan.contexts[number].ids) for number in missing], GENERATED_AT_ONCE):
            numbers = [missing[place] for place in chosen]
            found = generate(self.opened, [plan.contexts[number] for number in numbers], settings)
            for number, generation in zip(numbers, found, strict=True):
                store.add(number, prompting.answer_of(self.opened.family.decode(generation.ids)))
            done += len(numbers)
            self.progress(done, len(plan.contexts))
        store.complete()


def among_the_examples(count: int) -> list[str]:
    """The remark on questions that were asked with other examples than the rest, if there are any."""
    return [f"{count} questions are among the examples themselves, and had others in front of them"] if count else []


def values_of(task: Task, items: Sequence[Item]) -> dict[str, list[float]]:
    """By reading, what each question is worth: right or wrong, or the values of a generated answer."""
    if task.generates:
        return {name: [item.scores[name][0] for item in items] for name in ("f1", "em")}
    return {str(name): [float(item.choice(name) == item.gold) for item in items] for name in READINGS}


def _scored(task: Task, plan: Plan, number: int, store: Store) -> Item:
    example = plan.examples[number]
    sums, tokens = zip(*store.values[number], strict=True)
    priors = [total for total, _ in store.values[len(plan.questions) + plan.prior_of[number]]]
    scores = {str(name): values for name, values in prompting.read_scores(sums, tokens, priors).items()}
    return Item(example.where, task.template.fill(example.fields, GAP), example.options, example.gold, scores)


def _generated(task: Task, example: Example, said: str) -> Item:
    scores = {"f1": [cmrc.f1(said, example.answers)], "em": [float(cmrc.exact(said, example.answers))]}
    return Item(example.where, task.template.fill(example.fields, GAP), example.answers, 0, scores, said)
