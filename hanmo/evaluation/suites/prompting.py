"""The corrected protocol: what a task asks a model, and how its answers are read.

A candidate's score is log p of its tokens (and of what follows the gap), given everything before. Three readings stand side
by side: the sum over the tokens, the mean, and the sum less that of the same prompt without the record's text (so that a
word which is likely anywhere does not win by that). What stands in front of a question is the same for all candidates,
and what is cut is only ever the text a question is about.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from hanmo.data.prepare.normalisation import normalised
from hanmo.errors import HanmoError
from hanmo.evaluation.suites.task import Example, Reading, Task
from hanmo.families.base import Family
from hanmo.records import Dialogue
from hanmo.rows import Context, Part

Candidates = list[list[Part]]
SEPARATOR = "\n\n"
NEW_TOKENS = 64


@dataclass(frozen=True)
class Front:
    """What stands in front of a question.

    Attributes:
        instruction: comes first.
        shots: solved questions: the text before the answer, and the answer with what follows it.
        chat: question and answer are turns of a conversation, in the model's own chat template, instead of running text.
    """

    instruction: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    chat: bool = False

    def text(self) -> str:
        """All of it as running text; "" if there is nothing."""
        solved = [asked + answered for asked, answered in self.shots]
        return "".join(piece + SEPARATOR for piece in [self.instruction, *solved] if piece)

    def candidates(self, family: Family, before: str, options: Sequence[str], after: str = "") -> Candidates:
        """The parts of each option after all this and ``before``, as ``Family.cloze`` makes them."""
        if not self.chat:
            return family.cloze(self.text() + before, options, after)
        said = [turn.rstrip() for asked, answered in (*self.shots, (before, "")) for turn in (asked, answered)][:-1]
        if self.instruction:
            said[0] = self.instruction + SEPARATOR + said[0]
        return [family.parts(Dialogue((*said, option + after)), sys.maxsize)[-1] for option in options]

    def shorter(self) -> list[Front]:
        """This, and with ever fewer of the last solved questions, down to none."""
        return [replace(self, shots=self.shots[:count]) for count in range(len(self.shots), -1, -1)]


@dataclass(frozen=True)
class Plan:
    """Everything one task asks.

    Attributes:
        examples: what is evaluated, with the candidates that are offered.
        questions: their candidates as parts.
        priors: the candidates without the records' text, and ``prior_of`` which of them belongs to each question.
        contexts: where the answer is generated, what it goes on from.
        shots: solved questions in front of each.
    """

    examples: list[Example]
    questions: list[Candidates]
    priors: list[Candidates]
    prior_of: list[int]
    contexts: list[Context]
    shots: list[int]


def plan(
    family: Family, task: Task, examples: Sequence[Example], fronts: Sequence[Sequence[Front]], limit: int
) -> Plan:
    """Ask a task's questions of at most ``limit`` tokens each.

    Args:
        fronts: alternatives for each question; the first one that leaves room for the whole question is used.

    Raises:
        HanmoError: a question does not fit even behind the last one and without the text it is about.
    """
    asked = Plan(list(examples), [], [], [], [], [])
    known: dict[tuple[tuple[str, ...], Front, str, str], int] = {}
    for example, offered in zip(examples, fronts, strict=True):
        if task.generates:
            asked.contexts.append(_context(family, task, example, offered[-1], limit - NEW_TOKENS))
            continue
        roomy = (one for one in offered[:-1] if _length(family, task, example, example.fields, one) <= limit)
        front = next(roomy, offered[-1])
        fields = shortened(family, task, example, front, limit)
        before, after = task.template.around(fields)
        asked.questions.append(front.candidates(family, before, example.options, after))
        asked.shots.append(len(front.shots))
        bare = task.template.without_text(fields)
        key = (example.options, front, *bare)
        if key not in known:
            known[key] = len(asked.priors)
            asked.priors.append(front.candidates(family, bare[0], example.options, bare[1]))
        asked.prior_of.append(known[key])
    return asked


def shortened(family: Family, task: Task, example: Example, front: Front, limit: int) -> dict[str, str]:
    """The record's fields, cut where the task allows so that the longest candidate's text fits."""
    fields = dict(example.fields)
    places = list(task.shorten.items())
    while True:
        length = _length(family, task, example, fields, front)
        if length <= limit:
            return fields
        while places and not fields[places[0][0]]:
            places.pop(0)
        if not places:
            raise HanmoError(
                f"{example.where}: the question has {length} tokens even without the text that may be cut; raise the "
                f"limit of {limit}, or ask with fewer examples"
            )
        name, side = places[0]
        text = fields[name]
        tokens = max(len(family.tokenizer.encode(text, add_special_tokens=False)), 1)
        surplus = min(math.ceil((length - limit) * len(text) / tokens), len(text))
        fields[name] = text[surplus:] if side == "start" else text[: len(text) - surplus]


def _length(family: Family, task: Task, example: Example, fields: dict[str, str], front: Front) -> int:
    """Tokens of a question with its longest candidate, a start and a stop token included."""
    before, after = task.template.around(fields)
    longest = max(example.options, key=len, default="")
    return sum(len(part.ids) for part in front.candidates(family, before, [longest], after)[0]) + 2


def _context(family: Family, task: Task, example: Example, front: Front, limit: int) -> Context:
    before, _ = task.template.around(shortened(family, task, example, front, limit))
    ids = tuple(id_ for part in front.candidates(family, before, [""])[0] for id_ in part.ids)
    return Context(ids, ids)


def draw_shots(
    family: Family, task: Task, train: Sequence[Example], shots: int, limit: int, seed: int
) -> list[Example]:
    """Examples for the prompt: each right answer in turn, at random within it, all together within half the limit.

    An example that takes more than its share is passed over; where all do, the text of one is cut.
    """
    rng = Random(seed)
    by_answer: dict[int, list[Example]] = {}
    for example in train:
        by_answer.setdefault(example.gold, []).append(example)
    pools = [rng.sample(found, len(found)) for _, found in sorted(by_answer.items())]
    rng.shuffle(pools)
    share = limit // 2 // max(shots, 1)
    drawn: list[Example] = []
    for place in range(min(shots, len(train))):
        pools = [pool for pool in pools if pool]
        pool = pools[place % len(pools)]
        fitting = (
            number
            for number, one in enumerate(pool)
            if len(_text(task, one)) <= 4 * share and _fits(family, task, one, share)
        )
        number = next(fitting, None)
        example = pool.pop(number if number is not None else 0)
        drawn.append(example if number is not None else replace(example, fields=_cut(family, task, example, share)))
    rng.shuffle(drawn)
    return drawn


def front_of(task: Task, shots: Sequence[Example], chat: bool = False) -> Front:
    """The task's instruction and these examples, solved."""
    solved = []
    for shot in shots:
        before, after = task.template.around(shot.fields)
        solved.append((before, _right(shot) + after))
    return Front(task.instruction, tuple(solved), chat)


def fronts_of(
    task: Task,
    examples: Sequence[Example],
    pool: Sequence[Example],
    draw: Callable[[Sequence[Example]], list[Example]],
    chat: bool = False,
) -> tuple[list[Front], int]:
    """The few-shot examples in front of each question, drawn from the pool by ``draw``, and how many questions got others.

    No question is shown its own answer: if the usual examples contain the question, or another record that asks the same,
    it gets examples drawn from the pool without such records.
    """
    usual = draw(pool)
    drawn = {shot.where for shot in usual}
    shown = {_question(task, one) for one in pool if one.where in drawn}
    fronts = {"": front_of(task, usual, chat)}
    asked = [_question(task, example) for example in examples] if shown else [""] * len(examples)
    for question in shown.intersection(asked):
        others = [one for one in pool if _question(task, one) != question]
        fronts[question] = front_of(task, draw(others), chat)
    found = [fronts[question if question in shown else ""] for question in asked]
    return found, sum(question in shown for question in asked)


def _question(task: Task, example: Example) -> str:
    """What is asked, without the candidates; width, case and punctuation make no difference."""
    return normalised(task.template.fill(example.fields, ""))


def fewer_options(examples: Sequence[Example], count: int, seed: int) -> Iterator[Example]:
    """The right candidate and ``count - 1`` wrong ones, drawn and ordered at random by the number of the record."""
    for number, example in enumerate(examples):
        if len(example.options) <= count:
            yield example
            continue
        rng = Random(f"{seed} {number}")
        gold = example.options[example.gold]
        options = [gold, *rng.sample([one for one in example.options if one != gold], count - 1)]
        rng.shuffle(options)
        yield replace(example, options=tuple(options), gold=options.index(gold))


def read_scores(sums: Sequence[float], tokens: Sequence[int], priors: Sequence[float]) -> dict[Reading, list[float]]:
    """The candidates' scores by reading; the highest wins, the first of equal ones."""
    return {
        "sum": list(sums),
        "mean": [total / count for total, count in zip(sums, tokens, strict=True)],
        "prior": [total - prior for total, prior in zip(sums, priors, strict=True)],
    }


def answer_of(text: str) -> str:
    """A generated answer: its first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _text(task: Task, example: Example) -> str:
    return task.template.fill(example.fields, _right(example))


def _right(example: Example) -> str:
    return example.options[example.gold] if example.options else example.answers[0]


def _fits(family: Family, task: Task, example: Example, share: int) -> bool:
    return len(family.tokenizer.encode(_text(task, example), add_special_tokens=False)) <= share


def _cut(family: Family, task: Task, example: Example, share: int) -> dict[str, str]:
    return shortened(family, task, replace(example, options=(_right(example),), gold=0), Front(), share)
