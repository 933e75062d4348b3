"""The one evaluation of suites: read the examples, score them, save every answer at once, and compute the results."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hanmo.errors import ConfigError, unknown
from hanmo.evaluation.engine.cache import Keep, Progress, Scored, Store, opened_store
from hanmo.evaluation.engine.candidates import score_candidates
from hanmo.evaluation.engine.row_scores import batches
from hanmo.evaluation.results.provenance import computed_by, software
from hanmo.evaluation.results.result import GAP, QuestionResult, Result, TaskResult
from hanmo.evaluation.suites import cmrc, prompting
from hanmo.evaluation.suites.prompting import Candidates, FewShotPrefix
from hanmo.evaluation.suites.suite import OPTION, UNKNOWN, Example, Options, Suite, Task, data_hash
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.rows import Context

GENERATED_AT_ONCE = 8
Watch = Callable[[str], Progress]  # title of a task -> its progress
Score = tuple[float, int]  # log p of a candidate and its tokens


def evaluate(opened: OpenedModel, suite: Suite, options: Options, cache: str | Path | None, watch: Watch) -> Result:
    """Evaluate the tasks of a suite one after the other. All files are read before the first question is scored.

    Answers are saved in the folder ``cache`` and not computed again. ConfigError if an option has no effect, or the
    model does not allow it.
    """
    protocol = suite.protocol(options)
    if options.chat:
        for task in suite.tasks:
            _check_chat(opened, task)
        opened = replace(opened, family=opened.family.answering_at_once())
    split = options.split or suite.splits[0]
    if split not in suite.splits:
        raise ConfigError(unknown(f"split of {suite.title}", split, suite.splits))
    examples = {task.name: suite.read(task, split, options.first) for task in suite.tasks}
    answered = _answered(examples)
    pool = protocol.pool if options.shots else None
    pools = {task.name: suite.read(task, pool, None) if pool else [] for task in suite.tasks}
    seed = options.seed or 0 if protocol.seed is None else protocol.seed
    used = {"seed": seed, "split": split, "chat": options.chat, "cot": options.cot}
    reported = {*suite.corrected.options, *suite.corrected.refused}
    about = {
        "model": opened.source,
        "family": opened.family.name,
        **computed_by(opened),
        "protocol": "published" if options.published else "corrected",
        "shots": options.shots,
        "limit": _limit(opened, options, protocol.limit),
        **{name: value for name, value in used.items() if name in reported},
        **software(),
    }
    results, submission = [], {}
    for task in suite.tasks:
        run = TaskRun(opened, suite, task, options, seed, cache, about, watch(task.title))
        result = (protocol.evaluate or corrected)(run, examples[task.name], pools[task.name])
        results.append(result)
        if suite.id_field:
            pairs = zip(examples[task.name], result.items, strict=True)
            submission[task.name] = {
                one.fields[suite.id_field]: item.options[item.choice(result.reading)] for one, item in pairs
            }
    return Result(suite.title, about, results if answered else [], submission)


@dataclass(frozen=True)
class TaskRun:
    """One task of a suite while it is evaluated."""

    opened: OpenedModel
    suite: Suite
    task: Task
    options: Options
    seed: int
    cache: str | Path | None
    about: dict[str, Any]  # everything the results of the whole run depend on
    progress: Progress

    @property
    def limit(self) -> int:
        return int(self.about["limit"])

    def ask(
        self, examples: Sequence[Example], prefixes: Sequence[Sequence[FewShotPrefix]]
    ) -> tuple[list[QuestionResult], list[str]]:
        """Ask every question after the first of its prefixes that leaves room for it; also returns notes for the result."""
        prepared = prompting.prepare_questions(self.opened.family, self.task, examples, prefixes, self.limit)
        texts = dict.fromkeys(offered[0].text() for offered in prefixes)
        form = str if self.task.generates else list[Scored]
        with self.store(form, examples, *texts, prefixes[0][0].chat) as store:
            if self.task.generates:
                answered = zip(examples, self._generate(prepared.contexts, store), strict=True)
                return [self.item(one, cmrc.scores(reply, one.answers), reply) for one, reply in answered], []
            found = self.score([*prepared.questions, *prepared.priors], store)
        items, priors = [], found[len(examples) :]
        for example, of_options, prior in zip(examples, found, prepared.prior_of, strict=False):
            sums, tokens = zip(*of_options, strict=True)
            scores = prompting.read_scores(sums, tokens, [total for total, _ in priors[prior]])
            items.append(self.item(example, scores))
        fewer = sum(count < len(offered[0].shots) for count, offered in zip(prepared.shots, prefixes, strict=True))
        return items, no_room(fewer)

    def result(
        self,
        reading: str,
        items: list[QuestionResult],
        about: dict[str, Any],
        notes: list[str],
        right: dict[str, list[float]] | None = None,
        chance: float | None = None,
    ) -> TaskResult:
        """The result of the task; ``right`` and ``chance`` are by default those of the questions, one by one."""
        task = self.task
        if chance is None and not task.generates:
            chance = sum(1 / len(item.options) for item in items) / len(items)
        return TaskResult(
            name=task.name,
            title=task.title,
            place=task.place,
            groups=task.groups,
            metric="F1" if task.generates else "accuracy",
            reading=reading,
            right=right or {name: [item.value(name) for item in items] for name in items[0].scores},
            chance=chance,
            labels=bool(task.labels),
            items=items,
            about=about,
            notes=notes,
        )

    def store(self, form: Any, examples: Sequence[Example], *more: Any) -> AbstractContextManager[Store]:
        """The answers to these examples, of the type ``form``; they depend on ``more`` besides model, protocol, task, data."""
        names = ("weights", "config", "precision", "device", "template", "protocol", "shots", "limit")
        about = {name: self.about[name] for name in names if name in self.about}
        content = [about, data_hash(examples), self.task.hash(), *more]
        return opened_store(self.cache, f"{self.task.name}-{self.about['protocol']}", content, form)

    def score(self, questions: Sequence[Candidates], store: Store) -> list[list[Score]]:
        """The score of each candidate, by question, computed where the store has none."""

        def find(missing: list[int], keep: Keep) -> None:
            score_candidates(
                self.opened,
                [questions[number] for number in missing],
                budget=self.options.budget,
                on_scored=lambda place, scores: keep(place, [(-one.nll, one.tokens) for one in scores]),
            )

        store.values = {
            number: scores
            for number, scores in store.values.items()
            if number < len(questions) and len(scores) == len(questions[number])  # else its line is damaged
        }
        return store.fill(len(questions), find, self.progress)

    def _generate(self, contexts: Sequence[Context], store: Store) -> list[str]:
        settings = Settings(max_new_tokens=prompting.NEW_TOKENS, do_sample=False, rule_files=False)

        def find(missing: list[int], keep: Keep) -> None:
            for places in batches([len(contexts[number].ids) for number in missing], GENERATED_AT_ONCE):
                replies = generate(self.opened, [contexts[missing[place]] for place in places], settings)
                for place, reply in zip(places, replies, strict=True):
                    keep(place, prompting.first_line(self.opened.family.decode(reply.ids)))

        return store.fill(len(contexts), find, self.progress)

    def item(self, example: Example, scores: dict[str, list[float]], generated: str | None = None) -> QuestionResult:
        """The result of a question; ``scores`` are of its candidates or of the answer that the model generated."""
        text, options = self.task.template.fill(example.fields, GAP), example.options or example.answers
        return QuestionResult(example.where, text, options, example.gold, scores, generated)


def corrected(run: TaskRun, examples: list[Example], pool: list[Example]) -> TaskResult:
    """Evaluate a task by the corrected protocol; see prompting.py."""
    task, family, options, suite = run.task, run.opened.family, run.options, run.suite
    data = data_hash(examples)
    if options.choices is not None:
        examples = list(prompting.fewer_options(examples, options.choices, run.seed))

    def draw(pool: Sequence[Example]) -> list[Example]:
        if suite.first_shots:
            return list(pool[: options.shots])
        return prompting.draw_shots(family, task, pool, options.shots, run.limit, run.seed) if options.shots else []

    drawn = draw(pool)
    prefixes, own = prompting.prefixes_of(task, examples, pool, draw, options.chat)
    items, notes = run.ask(examples, [one.shorter() if suite.first_shots else [one] for one in prefixes])
    if own:
        notes.append(f"{own} questions are among the examples themselves, and had others in front of them")
    if options.choices is not None and any(len(one.options) == options.choices for one in examples):
        notes.append(f"{options.choices} candidates offered, the wrong ones drawn at random")
    if len(drawn) < options.shots:
        notes.append(f"only {len(drawn)} examples in the {suite.corrected.pool} split")
    about = {"data": data, "task": task.hash(), "shots": [shot.where for shot in drawn]}
    return run.result(task.reading, items, about, notes)


def no_room(questions: int) -> list[str]:
    return [f"{questions} questions left no room for all examples"] if questions else []


def _answered(examples: dict[str, list[Example]]) -> bool:
    known = {name: found[0].gold != UNKNOWN for name, found in examples.items()}
    if any(known.values()) and not all(known.values()):
        without = next(name for name, answered in known.items() if not answered)
        raise ConfigError(f"{without} has no answers, but other tasks have; choose only tasks that belong together")
    return all(known.values())


def _limit(opened: OpenedModel, options: Options, default: int) -> int:
    positions = None if options.published else getattr(opened.network.config, "max_position_embeddings", None)
    if positions is None:
        return options.limit or default
    if options.limit is not None and options.limit > positions:
        raise ConfigError(f"--limit {options.limit}: this model has {positions} positions; give at most that")
    return options.limit or min(default, positions)


def _check_chat(opened: OpenedModel, task: Task) -> None:
    if not opened.tokenizer.chat_template:
        raise ConfigError(f"--chat: {opened.source} has no chat template; ask it without, in running text")
    if not task.template.text.endswith(OPTION):
        raise ConfigError(
            f"--chat: {task.title} goes on after the candidate, which a conversation cannot; leave it out"
        )
