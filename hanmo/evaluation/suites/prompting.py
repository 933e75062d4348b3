"""The corrected protocol: how a task's questions become prompts, and how scores are read.

A candidate's score is log p of its tokens (and of the text after the gap), given everything before. Its readings are
"sum" over the tokens, "mean", and "prior": the sum less that of the same prompt without the record's text, so that a
word that is likely everywhere gains nothing. Only the text that a question is about is ever truncated.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from hanmo.data.prepare.normalisation import normalised
from hanmo.errors import HanmoError
from hanmo.evaluation.suites.suite import Example, Task
from hanmo.families.base import Family
from hanmo.records import Dialogue
from hanmo.rows import Context, Part

Candidates = list[list[Part]]
SEPARATOR = "\n\n"
NEW_TOKENS = 64


@dataclass(frozen=True)
class FewShotPrefix:
    """Everything before a question."""

    instruction: str = ""
    # Solved questions: the text before the answer, and the answer with the text after it.
    shots: tuple[tuple[str, str], ...] = ()
    chat: bool = False  # questions and answers are turns of the model's chat template, instead of running text

    def text(self) -> str:
        """Instruction and shots as running text."""
        solved = [question + answer for question, answer in self.shots]
        return "".join(piece + SEPARATOR for piece in [self.instruction, *solved] if piece)

    def candidates(self, family: Family, before: str, options: Sequence[str], after: str = "") -> Candidates:
        """The parts of each option between ``before`` and ``after``, as ``Family.cloze`` makes them."""
        if not self.chat:
            return family.cloze(self.text() + before, options, after)
        turns = [turn.rstrip() for shot in self.shots for turn in shot] + [before.rstrip()]
        if self.instruction:
            turns[0] = self.instruction + SEPARATOR + turns[0]
        return [family.parts(Dialogue((*turns, option + after)), sys.maxsize)[-1] for option in options]

    def shorter(self) -> list[FewShotPrefix]:
        """This prefix, and with ever fewer of the last shots, down to none."""
        return [replace(self, shots=self.shots[:count]) for count in range(len(self.shots), -1, -1)]


@dataclass(frozen=True)
class PreparedQuestions:
    """The questions of one task, ready to be scored or answered."""

    questions: list[Candidates] = field(default_factory=list)
    priors: list[Candidates] = field(default_factory=list)  # the candidates without the records' text
    prior_of: list[int] = field(default_factory=list)  # index of each question's prior
    shots: list[int] = field(default_factory=list)  # number of shots before each question
    contexts: list[Context] = field(default_factory=list)  # prompts of generated answers


def prepare_questions(
    family: Family, task: Task, examples: Sequence[Example], prefixes: Sequence[Sequence[FewShotPrefix]], limit: int
) -> PreparedQuestions:
    """Prompts of at most ``limit`` tokens, each after the first of its ``prefixes`` that leaves room for all of it.

    HanmoError if a question does not fit even after the last prefix and without the text it is about.
    """
    prepared = PreparedQuestions()
    known: dict[tuple[tuple[str, ...], FewShotPrefix, str, str], int] = {}
    for example, offered in zip(examples, prefixes, strict=True):
        if task.generates:
            fields = shortened(family, task, example, offered[-1], limit - NEW_TOKENS)
            (parts,) = offered[-1].candidates(family, task.template.around(fields)[0], [""])
            ids = tuple(id_ for part in parts for id_ in part.ids)
            prepared.contexts.append(Context(ids, ids))
            continue
        fitting = (one for one in offered[:-1] if _length(family, task, example, example.fields, one) <= limit)
        prefix = next(fitting, offered[-1])
        fields = shortened(family, task, example, prefix, limit)
        before, after = task.template.around(fields)
        prepared.questions.append(prefix.candidates(family, before, example.options, after))
        prepared.shots.append(len(prefix.shots))
        bare, _ = task.template.around(dict.fromkeys(fields, ""))
        number = known.setdefault((example.options, prefix, bare, after), len(prepared.priors))
        if number == len(prepared.priors):
            prepared.priors.append(prefix.candidates(family, bare, example.options, after))
        prepared.prior_of.append(number)
    return prepared


def shortened(family: Family, task: Task, example: Example, prefix: FewShotPrefix, limit: int) -> dict[str, str]:
    """The record's fields, cut where the task allows until the longest candidate's text fits into ``limit`` tokens."""
    fields = dict(example.fields)
    places = list(task.shorten.items())
    while (length := _length(family, task, example, fields, prefix)) > limit:
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
    return fields


def _length(family: Family, task: Task, example: Example, fields: dict[str, str], prefix: FewShotPrefix) -> int:
    """Tokens of a question with its longest candidate, a start and a stop token included."""
    before, after = task.template.around(fields)
    longest = max(example.options, key=len, default="")
    return sum(len(part.ids) for part in prefix.candidates(family, before, [longest], after)[0]) + 2


def draw_shots(
    family: Family, task: Task, train: Sequence[Example], shots: int, limit: int, seed: int
) -> list[Example]:
    """Few-shot examples: each right answer in turn, at random within it, all together within half the limit.

    An example of more than its share of tokens is passed over; where all are, the text of one is cut.
    """
    rng = Random(seed)
    by_answer: dict[int, list[Example]] = {}
    for example in train:
        by_answer.setdefault(example.gold, []).append(example)
    pools = [rng.sample(found, len(found)) for _, found in sorted(by_answer.items())]
    rng.shuffle(pools)
    share = limit // 2 // max(shots, 1)

    def fits(example: Example) -> bool:
        text = task.template.fill(example.fields, example.right)
        return len(text) <= 4 * share and len(family.tokenizer.encode(text, add_special_tokens=False)) <= share

    drawn: list[Example] = []
    for place in range(min(shots, len(train))):
        pools = [pool for pool in pools if pool]
        pool = pools[place % len(pools)]
        number = next((number for number, one in enumerate(pool) if fits(one)), None)
        example = pool.pop(number or 0)
        if number is None:
            alone = replace(example, options=(example.right,), gold=0)
            example = replace(example, fields=shortened(family, task, alone, FewShotPrefix(), share))
        drawn.append(example)
    rng.shuffle(drawn)
    return drawn


def prefix_of(task: Task, shots: Sequence[Example], chat: bool = False) -> FewShotPrefix:
    around = [(*task.template.around(shot.fields), shot.right) for shot in shots]
    return FewShotPrefix(task.instruction, tuple((before, right + after) for before, after, right in around), chat)


def prefixes_of(
    task: Task,
    examples: Sequence[Example],
    pool: Sequence[Example],
    draw: Callable[[Sequence[Example]], list[Example]],
    chat: bool = False,
) -> tuple[list[FewShotPrefix], int]:
    """The prefix of each question, with few-shot examples that ``draw`` takes from the pool; and the number of exceptions.

    Where the usual examples ask the same question, others are drawn, so that the prefix does not hold the answer.
    """
    usual = draw(pool)
    drawn = {shot.where for shot in usual}
    shown = {_question(task, one) for one in pool if one.where in drawn}
    prefixes = {"": prefix_of(task, usual, chat)}
    questions = [_question(task, example) for example in examples] if shown else [""] * len(examples)
    for question in shown.intersection(questions):
        others = [one for one in pool if _question(task, one) != question]
        prefixes[question] = prefix_of(task, draw(others), chat)
    chosen = [prefixes[question if question in shown else ""] for question in questions]
    return chosen, sum(question in shown for question in questions)


def _question(task: Task, example: Example) -> str:
    """The question without its candidates, as questions are compared."""
    return normalised(task.template.fill(example.fields, ""))


def fewer_options(examples: Sequence[Example], count: int, seed: int) -> Iterator[Example]:
    """The right candidate and ``count - 1`` wrong ones, drawn and ordered at random by the number of the record."""
    for number, example in enumerate(examples):
        if len(example.options) <= count:
            yield example
            continue
        rng = Random(f"{seed} {number}")
        options = [example.right, *rng.sample(example.wrong(), count - 1)]
        rng.shuffle(options)
        yield replace(example, options=tuple(options), gold=options.index(example.right))


def read_scores(sums: Sequence[float], tokens: Sequence[int], priors: Sequence[float]) -> dict[str, list[float]]:
    return {
        "sum": list(sums),
        "mean": [total / count for total, count in zip(sums, tokens, strict=True)],
        "prior": [total - prior for total, prior in zip(sums, priors, strict=True)],
    }


def first_line(text: str) -> str:
    """A generated answer: the first line that is not blank."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
