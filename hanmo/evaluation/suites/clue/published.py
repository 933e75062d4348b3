"""The published CLUE protocol, flaws included, as the recorded cases have it.

Each record becomes one prompt per candidate, and the prompt with the lowest "perplexity" wins (published_scores.py).
Few-shot examples are drawn anew for each candidate from the evaluated prompts themselves, wrong candidates included, and
a prompt that is too long is cut, which may cut off the text that is scored. Prompts are grouped by counting, so that
tasks with an uneven number of candidates fall out of step. Only networks of one stack were evaluated this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from hanmo.errors import HanmoError
from hanmo.evaluation.engine.distributed import shard
from hanmo.evaluation.results.result import GAP, QuestionResult, TaskResult
from hanmo.evaluation.suites.clue.published_scores import MAX_LENGTH, generate_answer, score_prompts, token_f1
from hanmo.evaluation.suites.clue.tasks import ClueTask
from hanmo.evaluation.suites.runner import TaskRun
from hanmo.evaluation.suites.task import Example, data_hash
from hanmo.families.base import Family
from hanmo.files import read_json

SEED = 42


@dataclass(frozen=True)
class CandidatePrompt:
    """The prompt of one candidate.

    Attributes:
        label: the right one of ``candidates``, the list that the prompt is counted in.
        example: index of the example.
    """

    text: str
    label: str
    candidates: tuple[str, ...]
    example: int


class FewShotPrompt(NamedTuple):
    """A prompt after few-shot examples: ``drawn`` are indices into the pool, the first ``kept`` of them are used."""

    text: str
    drawn: tuple[int, ...]
    kept: int


@dataclass(frozen=True)
class DrawnCandidates:
    """Candidates of tasks that draw wrong labels.

    Attributes:
        candidates: for each record, the right one first.
        pool: the prompts that few-shot examples are drawn from.
        own: drawn here; the original's draw depended on the order of a set.
    """

    candidates: list[tuple[str, ...]]
    pool: list[str]
    own: bool


def evaluate_task(run: TaskRun, examples: list[Example], _: list[Example]) -> TaskResult:
    """Evaluate a task as published; few-shot examples come from the evaluated prompts."""
    return _generated(run, examples) if run.task.generates else _scored(run, examples)


def _scored(run: TaskRun, examples: list[Example]) -> TaskResult:
    task, options, rng = _clue(run), run.options, Random(SEED)
    notes, draws = [], None
    if task.published.drawn:
        draws = draw_candidates(task, examples, rng)
        if options.candidates is not None:
            draws = read_candidates(options.candidates, task, examples)
    own = draws is not None and draws.own
    if own:
        notes.append("published protocol, own draw: the original's wrong labels depended on the order of a set")
    prompts = build_prompts(task, examples, draws)
    texts = [prompt.text for prompt in prompts]
    if options.shots:
        pool = draws.pool if draws and draws.pool else texts
        texts = [made.text for made in add_shots(run.opened.family, prompts, pool, options.shots, rng, run.limit)]
        notes.append("the examples are drawn from the evaluated questions, wrong candidates included")
    values = _perplexities(run, examples, texts)
    right, dropped = accuracy([ppl for ppl, _ in values], prompts)
    if dropped:
        notes.append(f"the last {dropped} prompts do not make a group and are left out")
    readings = {"published": list(map(float, right))}
    items = _by_record(task, examples, prompts, values)
    if all(len(item.options) > 1 for item in items):
        readings["shifted"] = [float(item.choice("shifted") == item.gold) for item in items]
    about = {"data": data_hash(examples), "task": task.hash(), "own draw": own}
    chance = sum(1 / len(prompt.candidates) for prompt in prompts) / len(prompts)
    return run.result("published", readings, items, about, notes, chance)


def _perplexities(run: TaskRun, examples: list[Example], texts: Sequence[str]) -> list[list[float]]:
    """The published perplexity and the mean -log p of each prompt."""
    with run.store(examples, _clue(run).published.template.text, texts) as store:
        missing = shard(store.missing(len(texts)))
        scored = score_prompts(run.opened, [texts[number] for number in missing], run.limit)
        for done, (place, score) in enumerate(scored, len(texts) - len(missing) + 1):
            store.add(missing[place], [score.ppl, score.nll])
            run.progress(done, len(texts))
        store.complete()
        return [store.values[number] for number in range(len(texts))]


def _generated(run: TaskRun, examples: list[Example]) -> TaskResult:
    template, family, items = _clue(run).published.template, run.opened.family, []
    with run.store(examples, template.text) as store:
        for done, number in enumerate(shard(store.missing(len(examples))), 1):
            store.add(number, generate_answer(run.opened, template.fill(examples[number].fields, "")))
            run.progress(done, len(examples))
        store.complete()
        for number, example in enumerate(examples):
            reply = store.values[number]
            f1, em = token_f1(family, reply, example.answers)
            scores = {"f1": [f1], "em": [float(em)]}
            items.append(QuestionResult(example.where, example.fields["question"], example.answers, 0, scores, reply))
    values = {name: [item.scores[name][0] for item in items] for name in ("f1", "em")}
    notes = ["examples were never put into these prompts"] if run.options.shots else []
    return run.result("f1", values, items, {"data": data_hash(examples), "task": run.task.hash()}, notes)


def _clue(run: TaskRun) -> ClueTask:
    assert isinstance(run.task, ClueTask)
    return run.task


def _by_record(
    task: ClueTask,
    examples: Sequence[Example],
    prompts: Sequence[CandidatePrompt],
    values: Sequence[Sequence[float]],
) -> list[QuestionResult]:
    """The prompts of each record together, however the published counting groups them."""
    places_of: list[list[int]] = [[] for _ in examples]
    for place, prompt in enumerate(prompts):
        places_of[prompt.example].append(place)
    items = []
    for example, places in zip(examples, places_of, strict=True):
        first = prompts[places[0]]
        options = tuple(prompts[place].candidates[rank] for rank, place in enumerate(places))
        gold = first.candidates.index(first.label) if len(places) > 1 else 0
        scores = {
            name: [-values[place][kind] for place in places] for kind, name in enumerate(("published", "shifted"))
        }
        text = task.published.template.fill(example.fields, GAP)
        items.append(QuestionResult(example.where, text, options, gold, scores))
    return items


def build_prompts(
    task: ClueTask, examples: Sequence[Example], draws: DrawnCandidates | None = None
) -> list[CandidatePrompt]:
    """The prompts of all records, in order; ``draws`` for tasks that draw wrong labels."""
    prompts: list[CandidatePrompt] = []
    for index, example in enumerate(examples):
        options, label, names = _candidates(task, example, draws.candidates[index] if draws else None)
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


def draw_candidates(task: ClueTask, examples: Sequence[Example], rng: Random) -> DrawnCandidates:
    """Wrong labels for every record, and once more for the prompts that few-shot examples are drawn from, as published.

    The draws differ from the original's, which drew from a set, whose order is another in every run.
    """

    def draw() -> list[tuple[str, ...]]:
        found = []
        for example in examples:
            gold = example.options[example.gold]
            others = [option for option in example.options if option != gold]
            found.append((gold, *rng.sample(others, task.published.drawn)))
        return found

    candidates, of_pool = draw(), draw()
    prompts = build_prompts(task, examples, DrawnCandidates(of_pool, [], own=True))
    return DrawnCandidates(candidates, [prompt.text for prompt in prompts], own=True)


def read_candidates(path: str | Path, task: ClueTask, examples: Sequence[Example]) -> DrawnCandidates:
    """The original's draws from a JSON file.

    ``{"tnews": {"candidates": [["right", "wrong", …], …], "labelled": ["prompt", …]}}``: a list of names for each record in
    order, and the prompts that few-shot examples are drawn from (needed with shots only).

    Raises:
        HanmoError: the file does not fit the task or the records.
    """
    try:
        content = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise HanmoError(f"{path}: {error}; expected a JSON file of candidates") from None
    entry = content.get(task.name)
    entry = entry if isinstance(entry, dict) else {}
    lists = entry.get("candidates")
    if not isinstance(lists, list) or len(lists) != len(examples):
        found = len(lists) if isinstance(lists, list) else "no"
        raise HanmoError(
            f"{path}: {found} lists of candidates for {task.name}, but {len(examples)} records; expected "
            f'{{"{task.name}": {{"candidates": [["right", "wrong", …], …]}}}} with one list for each record'
        )
    for names, example in zip(lists, examples, strict=True):
        gold = example.options[example.gold]
        if not isinstance(names, list) or not names or names[0] != gold or not set(names) <= set(example.options):
            raise HanmoError(
                f"{path}: {names!r} for {example.where}; expected {gold!r} first, then other names of labels"
            )
    return DrawnCandidates([tuple(names) for names in lists], list(entry.get("labelled", ())), own=False)


def add_shots(
    family: Family,
    prompts: Sequence[CandidatePrompt],
    pool: Sequence[str],
    shots: int,
    rng: Random,
    max_length: int = MAX_LENGTH,
) -> list[FewShotPrompt]:
    """Few-shot examples before each prompt: drawn from the pool, taken in that order up to the first that is too long."""
    lengths = {text: family.published_length(text + "\n") for text in pool}
    made = []
    for prompt in prompts:
        drawn = tuple(rng.sample(range(len(pool)), min(len(pool), shots)))
        used, kept = family.published_length(prompt.text), 0
        for index in drawn:
            if lengths[pool[index]] + used + 2 > max_length:
                break
            used += lengths[pool[index]]
            kept += 1
        made.append(FewShotPrompt("\n".join([*(pool[index] for index in drawn[:kept]), prompt.text]), drawn, kept))
    return made


def accuracy(ppls: Sequence[float], prompts: Sequence[CandidatePrompt]) -> tuple[list[bool], int]:
    """Whether each group is right, and the number of prompts of an incomplete last group, which is dropped.

    A group ends where the number of a prompt is a multiple of the length of its own list; the lowest of the scores since
    the last end wins, the first of equal ones.

    Raises:
        HanmoError: the label of a group's last prompt is not in its list, where the original stopped, too.
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
