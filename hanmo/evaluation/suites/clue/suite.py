"""CLUE as a suite, and its published protocol, flaws included, as the recorded cases have it.

As published, each record becomes one prompt per candidate, and the lowest "perplexity" wins (published_scores.py).
Few-shot examples are drawn anew for each candidate from the evaluated prompts themselves, wrong candidates included,
and a prompt that is too long is truncated, perhaps within the text that is scored. Prompts are grouped by counting, so
that tasks with an uneven number of candidates fall out of step.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from typing import NamedTuple

from hanmo.errors import HanmoError
from hanmo.evaluation.engine.cache import Keep, Value
from hanmo.evaluation.results.result import GAP, QuestionResult, TaskResult, content_of
from hanmo.evaluation.suites.clue.published_scores import MAX_LENGTH, generate_answer, score_prompts, token_f1
from hanmo.evaluation.suites.clue.tasks import ClueTask, all_tasks, read_split
from hanmo.evaluation.suites.runner import TaskRun
from hanmo.evaluation.suites.suite import Example, Protocol, Suite, choose_tasks, data_hash
from hanmo.families.base import Family

SEED = 42
Draws = tuple[list[tuple[str, ...]], list[str]]  # candidates of each record, the right one first; few-shot prompts


class CandidatePrompt(NamedTuple):
    """The prompt of one candidate of an example; ``label``: the right one of ``candidates``, which it is counted in."""

    text: str
    label: str
    candidates: tuple[str, ...]
    example: int


def clue_suite(data: str | Path, names: Iterable[str] = ()) -> Suite:
    """CLUE's tasks by name, or all ten, of a folder for ``tasks.read_split``; ConfigError for an unknown name."""
    tasks = choose_tasks("CLUE task", all_tasks(), names)
    titles = ", ".join(task.title for task in tasks)
    corrected = Protocol(
        options=("budget", "seed", "choices"),
        refused={"candidates": "--candidates names the original's draws, which only the published protocol has"},
    )
    as_published = Protocol(
        evaluate=evaluate_published,
        limit=MAX_LENGTH,
        pool=None,
        seed=SEED,
        options=("candidates",) if any(task.published.drawn for task in tasks) else (),
        refused={
            "candidates": f"--candidates names wrong labels of IFLYTEK and TNEWS; chosen are {titles}",
            "choices": "--choices is for the corrected protocol; the published one always draws 3 wrong labels",
            "seed": f"--seed is for the corrected protocol; the published one always draws with {SEED}",
            "budget": "--budget is for the corrected protocol; the published one scores prompts one by one",
        },
    )
    return Suite(
        name="clue",
        title="CLUE",
        tasks=tasks,
        read=lambda task, split, first: read_split(task, data, split, first),
        corrected=corrected,
        published=as_published,
    )


def evaluate_published(run: TaskRun, examples: list[Example], _: list[Example]) -> TaskResult:
    assert isinstance(run.task, ClueTask)
    return (_generated if run.task.generates else _scored)(run, run.task, examples)


def _scored(run: TaskRun, task: ClueTask, examples: list[Example]) -> TaskResult:
    options, rng, notes = run.options, Random(SEED), []
    drawn, pool = draw_candidates(task, examples, rng) if task.published.drawn else (None, [])
    own = drawn is not None and options.candidates is None
    if own:
        notes.append("published protocol, own draw: the original's wrong labels depended on the order of a set")
    elif drawn is not None and options.candidates is not None:
        drawn, pool = read_candidates(options.candidates, task, examples)
    prompts = build_prompts(task, examples, drawn)
    texts = [prompt.text for prompt in prompts]
    if options.shots:
        texts = add_shots(run.opened.family, texts, pool or texts, options.shots, rng, run.limit)
        notes.append("the examples are drawn from the evaluated questions, wrong candidates included")
    values = _perplexities(run, task, examples, texts)
    right, dropped = accuracy([ppl for ppl, _ in values], prompts)
    if dropped:
        notes.append(f"the last {dropped} prompts do not make a group and are left out")
    readings = {"published": list(map(float, right))}
    items = _by_record(task, examples, prompts, values)
    if all(len(item.options) > 1 for item in items):
        readings["shifted"] = [item.value("shifted") for item in items]
    about = {"data": data_hash(examples), "task": task.hash(), "own draw": own}
    chance = sum(1 / len(prompt.candidates) for prompt in prompts) / len(prompts)
    return run.result("published", items, about, notes, readings, chance)


def _perplexities(
    run: TaskRun, task: ClueTask, examples: list[Example], texts: Sequence[str]
) -> list[tuple[float, float]]:
    """The ``PublishedScore`` of each prompt."""

    def find(missing: list[int], keep: Keep) -> None:
        for place, score in score_prompts(run.opened, [texts[number] for number in missing], run.limit):
            keep(place, score)

    with run.store(tuple[Value, Value], examples, task.published.template.text, texts) as store:
        return store.fill(len(texts), find, run.progress)


def _generated(run: TaskRun, task: ClueTask, examples: list[Example]) -> TaskResult:
    template, items = task.published.template, []

    def find(missing: list[int], keep: Keep) -> None:
        for place, number in enumerate(missing):
            keep(place, generate_answer(run.opened, template.fill(examples[number].fields, "")))

    with run.store(str, examples, template.text) as store:
        replies = store.fill(len(examples), find, run.progress)
    for example, reply in zip(examples, replies, strict=True):
        f1, em = token_f1(run.opened.family, reply, example.answers)
        scores = {"f1": [f1], "em": [float(em)]}
        items.append(QuestionResult(example.where, example.fields["question"], example.answers, 0, scores, reply))
    notes = ["examples were never put into these prompts"] if run.options.shots else []
    return run.result("f1", items, {"data": data_hash(examples), "task": task.hash()}, notes)


def _by_record(
    task: ClueTask, examples: Sequence[Example], prompts: Sequence[CandidatePrompt], values: Sequence[Sequence[float]]
) -> list[QuestionResult]:
    """The prompts of each record together, however the published counting groups them."""
    items = []
    found = zip(prompts, values, strict=True)
    for number, group in groupby(found, key=lambda one: one[0].example):
        of_record, pairs = zip(*group, strict=True)
        first, example = of_record[0], examples[number]
        options = tuple(prompt.candidates[rank] for rank, prompt in enumerate(of_record))
        gold = first.candidates.index(first.label) if len(options) > 1 else 0
        ppl, nll = zip(*pairs, strict=True)
        scores = {"published": [-value for value in ppl], "shifted": [-value for value in nll]}
        text = task.published.template.fill(example.fields, GAP)
        items.append(QuestionResult(example.where, text, options, gold, scores))
    return items


def build_prompts(
    task: ClueTask, examples: Sequence[Example], drawn: Sequence[tuple[str, ...]] | None = None
) -> list[CandidatePrompt]:
    """The prompts of all records, in order; ``drawn``: the candidates of each, for tasks that draw wrong labels."""
    prompts: list[CandidatePrompt] = []
    for index, example in enumerate(examples):
        options, label, names = _candidates(task, example, drawn[index] if drawn else None)
        for option in options:
            text = task.published.template.fill(example.fields, option)
            prompts.append(CandidatePrompt(text, label, names, index))
    return prompts


def _candidates(
    task: ClueTask, example: Example, drawn: tuple[str, ...] | None
) -> tuple[Sequence[str], str, tuple[str, ...]]:
    """The candidates that are put into the template, the right one, and the list that they are counted in."""
    published = task.published
    if drawn is not None:
        return drawn, drawn[0], drawn
    words = tuple(published.words.values())
    if published.only is not None:
        return [example.options[published.only]], published.words[example.label], words
    if words:
        return words, published.words[example.label], words
    options = example.options
    names = (*options, *(f"test{place}" for place in range(len(options), published.filled_to)))
    return options, options[example.gold], names


def draw_candidates(task: ClueTask, examples: Sequence[Example], rng: Random) -> Draws:
    """Wrong labels for every record, and once more for the prompts of few-shot examples, as published."""
    drawn, of_pool = (
        [(example.right, *rng.sample(example.wrong(), task.published.drawn)) for example in examples] for _ in range(2)
    )
    return drawn, [prompt.text for prompt in build_prompts(task, examples, of_pool)]


def read_candidates(path: str | Path, task: ClueTask, examples: Sequence[Example]) -> Draws:
    """The original's draws from a JSON file; HanmoError if it does not fit the task or the records.

    ``{"tnews": {"candidates": [["right", "wrong", …], …], "labelled": ["prompt", …]}}``: a list of names for each record in
    order, and the prompts that few-shot examples are drawn from (needed with shots only).
    """
    entry = content_of(path, "a JSON file of candidates").get(task.name)
    entry = entry if isinstance(entry, dict) else {}
    lists = entry.get("candidates")
    if not isinstance(lists, list) or len(lists) != len(examples):
        found = len(lists) if isinstance(lists, list) else "no"
        raise HanmoError(
            f"{path}: {found} lists of candidates for {task.name}, but {len(examples)} records; expected "
            f'{{"{task.name}": {{"candidates": [["right", "wrong", …], …]}}}} with one list for each record'
        )
    for names, example in zip(lists, examples, strict=True):
        fit = isinstance(names, list) and all(name in example.options for name in names)
        if not fit or names[:1] != [example.right]:
            raise HanmoError(
                f"{path}: {names!r} for {example.where}; expected {example.right!r} first, then other names of labels"
            )
    pool = entry.get("labelled", [])
    if not isinstance(pool, list) or not all(isinstance(text, str) for text in pool):
        raise HanmoError(f"{path}: 'labelled' of {task.name} is not a list of prompts")
    return [tuple(names) for names in lists], pool


def add_shots(
    family: Family, prompts: Sequence[str], pool: Sequence[str], shots: int, rng: Random, max_length: int
) -> list[str]:
    """Few-shot examples before each prompt: drawn from the pool, taken in that order up to the first that is too long."""
    lengths = [family.published_length(text + "\n") for text in pool]
    made = []
    for prompt in prompts:
        used, kept = family.published_length(prompt), list[str]()
        for index in rng.sample(range(len(pool)), min(len(pool), shots)):
            if lengths[index] + used + 2 > max_length:
                break
            used += lengths[index]
            kept.append(pool[index])
        made.append("\n".join([*kept, prompt]))
    return made


def accuracy(ppls: Sequence[float], prompts: Sequence[CandidatePrompt]) -> tuple[list[bool], int]:
    """Whether each group is right, and the number of prompts of an incomplete last group, which is dropped.

    A group ends where the number of a prompt is a multiple of the length of its list; the lowest score since then wins.
    HanmoError if the label of the last prompt is not in its list, where the original fails too.
    """
    right, collected = [], []
    for number, (ppl, prompt) in enumerate(zip(ppls, prompts, strict=True)):
        collected.append(ppl)
        if number % len(prompt.candidates) != len(prompt.candidates) - 1:
            continue
        if prompt.label not in prompt.candidates:
            raise HanmoError(
                f"the published grouping has fallen out of step: {prompt.label!r} is not among "
                f"{', '.join(prompt.candidates)}, where the original stops as well; evaluate without --published"
            )
        right.append(collected.index(min(collected)) == prompt.candidates.index(prompt.label))
        collected = []
    return right, len(collected)
