"""Scores of candidates that share a context: the context is read once, and every candidate continues from there.

A question is a list of candidates from ``Family.cloze``; the parts before the first scored one are its context.
A context that all candidates share is prefilled once and gives the first token of each. Longer candidates continue in
one step from the expanded state, where a common beginning is fed once. Networks that a probe shows to honour a mask of
trees read a question in one pass instead (trees.py). Other questions are scored row by row.

Shape suffixes: S questions, R branches that are continued, q fed tokens, P position dimensions, V vocabulary, N labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from accelerate.utils import release_memory
from torch import Tensor

from hanmo.errors import HanmoError, out_of_memory
from hanmo.evaluation.engine import trees
from hanmo.evaluation.engine.row_scores import RowScore, score_rows
from hanmo.families.base import OpenedModel
from hanmo.nn.batching import batching_of
from hanmo.nn.finite import require_finite
from hanmo.nn.row_model import evaluating
from hanmo.rows import Part, Prompt

T = TypeVar("T")
Candidate = Sequence[Part]
OnScored = Callable[[int, list[RowScore]], None]  # index of the question, scores of its candidates

BUDGET_CPU = 8192
BUDGET = 65536  # tokens that are in memory at the same time
FED_CPU = 768  # tokens fed at the same time: enough for the matrix products, few enough for the cache
FILLED_CPU = 0.85  # least ratio of the narrowest context of a batch to the widest
LOGITS = 1 << 26  # logits that are in memory at the same time
SUMMED = 256  # places whose logits are converted to fp32 at the same time


@dataclass(frozen=True)
class _Question:
    index: int
    prompt: Prompt
    answers: list[tuple[int, ...]]  # the scored ids of each candidate

    @property
    def width(self) -> int:
        """Tokens the network reads of the context."""
        return max(value.shape[-1] for value in self.prompt.inputs.values() if value.dim())

    @property
    def longest(self) -> int:
        return max(map(len, self.answers))


@dataclass
class _Branch:
    """Tokens fed after the context of question ``source`` of a batch."""

    source: int
    ids: tuple[int, ...]
    # Number in the batch, and ids, of each candidate whose tokens but the last are the first of those fed.
    answers: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


def score_candidates(
    opened: OpenedModel,
    questions: Sequence[Sequence[Candidate]],
    budget: int | None = None,
    on_scored: OnScored | None = None,
) -> list[list[RowScore]]:
    """log p of every scored token of every candidate, by question: in fp32 that of ``score_alone`` to 1e-5 per token.

    Args:
        budget: tokens in memory at the same time; it is halved whenever memory runs out. The default suits the device.
        on_scored: called with each question as soon as it is done, the longest first: similar lengths share a batch.

    Raises:
        HanmoError: memory runs out even for one candidate at a time.
        NotANumberError: the network computes NaN or infinity.
    """
    found: dict[int, list[RowScore]] = {}

    def finish(index: int, scores: list[RowScore]) -> None:
        require_finite([value for score in scores for value in score.logprobs], opened.network)
        found[index] = scores
        if on_scored is not None:
            on_scored(index, scores)

    # Networks that cannot continue by several tokens, or from contexts of different length, read every row whole.
    continues = batching_of(opened.network).continues
    shared = [_shared(opened, index, candidates) for index, candidates in enumerate(questions) if continues]
    together = [question for question in shared if question is not None]
    budget = budget or (BUDGET_CPU if opened.network.device.type == "cpu" else BUDGET)
    with evaluating(opened.network):
        _read_trees(opened, together, budget, finish)
        left = [question for question in together if question.index not in found]
        left.sort(key=lambda question: (-question.width, -question.longest))
        while left:
            batch = _batch(opened, left, budget)
            scores = _or_none_if_full(_score, opened, batch, budget)
            if scores is None:
                budget = _halved(budget)
                continue
            for question, of_question in zip(batch, scores, strict=True):
                finish(question.index, of_question)
            del left[: len(batch)]
    for index in range(len(questions)):
        if index not in found:
            finish(index, score_alone(opened, questions[index]))
    return [found[index] for index in range(len(questions))]


def score_alone(opened: OpenedModel, candidates: Sequence[Candidate]) -> list[RowScore]:
    """One candidate after the other through the whole network."""
    return score_rows(opened, [opened.family.row(parts, stop=False) for parts in candidates], batch_size=1)


def _shared(opened: OpenedModel, index: int, candidates: Sequence[Candidate]) -> _Question | None:
    """The question as one prompt and its answers; None if its candidates do not continue one context."""
    contexts, answers = set(), []
    for *before, last in candidates:
        if not last.scored or any(part.scored for part in before):
            return None
        contexts.add(tuple(id_ for part in before for id_ in part.ids))
        answers.append(last.ids)
    if len(contexts) != 1 or not all(answers):
        return None
    return _Question(index, opened.family.prompt(contexts.pop()), answers)


def _read_trees(opened: OpenedModel, questions: Sequence[_Question], budget: int, finish: OnScored) -> None:
    """Score the questions that the network reads as trees; the others are left."""
    if not _or_none_if_full(trees.exact, opened, sum(one.width + one.longest for one in questions)):
        return
    planted = [trees.plant(one.index, one.prompt, one.answers) for one in questions]
    rows = list(trees.rows_of([tree for tree in planted if tree.size <= min(trees.WIDEST, budget)]))
    while rows:
        width = sum(tree.size for tree in rows[0])
        batch = rows[: 1 if opened.network.device.type == "cpu" else max(budget // width, 1)]
        scores = _or_none_if_full(trees.read, opened, batch)
        if scores is None and len(batch) == 1:
            return  # contexts and candidates may still fit one after the other
        if scores is None:
            budget = _halved(budget)
            continue
        for tree, of_question in zip((tree for row in batch for tree in row), scores, strict=True):
            finish(tree.number, of_question)
        del rows[: len(batch)]


def _batch(opened: OpenedModel, questions: Sequence[_Question], budget: int) -> Sequence[_Question]:
    """As many questions as fit; on a CPU, where padding costs as much as other tokens, of similar width."""
    batch = questions[: max(_fed(opened, budget) // questions[0].width, 1)]
    if opened.network.device.type != "cpu":
        return batch
    lowest = questions[0].width * FILLED_CPU
    return [question for question in batch if question.width >= lowest]


def _fed(opened: OpenedModel, budget: int) -> int:
    """Tokens of one pass through the network: a CPU gains nothing from more, and rows would be padded."""
    return min(budget, FED_CPU) if opened.network.device.type == "cpu" else budget


def _halved(budget: int) -> int:
    if budget == 1:
        raise HanmoError(
            "out of memory with a single candidate at a time; take a smaller model, a smaller limit, or bf16"
        )
    release_memory()
    return budget // 2


def _or_none_if_full(action: Callable[..., T], *arguments: Any) -> T | None:
    try:
        return action(*arguments)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None


def _score(opened: OpenedModel, batch: Sequence[_Question], budget: int) -> list[list[RowScore]]:
    network, device = opened.network, opened.network.device
    inputs = opened.family.stack_prompts([question.prompt for question in batch])
    logits_S1V, state = network.prefill(**{name: value.to(device) for name, value in inputs.items()})
    answers = [(source, answer) for source, question in enumerate(batch) for answer in question.answers]
    logprobs = [[value] for value in _pick(logits_S1V, [(source, 0, answer[0]) for source, answer in answers])]
    places = min(LOGITS // logits_S1V.shape[-1], _fed(opened, budget))
    for chunk in _chunks(_branches(answers), batch[0].width, budget, places):
        found = iter(_continue(network, state, batch, chunk))
        for branch in chunk:
            for number, answer in branch.answers:
                logprobs[number] += [next(found) for _ in answer[1:]]
    scores: list[list[RowScore]] = [[] for _ in batch]
    for (source, _), values in zip(answers, logprobs, strict=True):
        scores[source].append(RowScore(tuple(values)))
    return scores


def _branches(answers: Sequence[tuple[int, tuple[int, ...]]]) -> list[_Branch]:
    """The branches that score all but the first token of each answer (question, ids), the longest first.

    No branch is the beginning of another one.
    """
    fed = {(source, answer[:-1]) for source, answer in answers if len(answer) > 1}
    branches: list[_Branch] = []
    branch_of: dict[tuple[int, tuple[int, ...]], _Branch] = {}
    for source, ids in sorted(fed, reverse=True):  # so that a longer one with the same beginning comes first
        if (source, ids) not in branch_of:
            branches.append(_Branch(source, ids))
            branch_of |= {(source, ids[:length]): branches[-1] for length in range(1, len(ids) + 1)}
    for number, (source, answer) in enumerate(answers):
        if len(answer) > 1:
            branch_of[source, answer[:-1]].answers.append((number, answer))
    return sorted(branches, key=lambda branch: (-len(branch.ids), branch.source, branch.ids))


def _chunks(branches: Sequence[_Branch], width: int, budget: int, places: int) -> Iterator[list[_Branch]]:
    """Branches of similar length, in the order of their questions; ``places``: most tokens fed, padding included."""
    start = 0
    while start < len(branches):
        length = len(branches[start].ids)
        fits = max(min(budget // (width + length), places // length), 1)
        yield sorted(branches[start : start + fits], key=lambda branch: branch.source)
        start += fits


def _continue(network: Any, state: Any, batch: Sequence[_Question], branches: Sequence[_Branch]) -> list[float]:
    """log p of all but the first token of each answer, branch by branch: all fed in one step.

    Shorter branches are filled up behind their end, where no scored token can see it.
    """
    device = network.device
    sources = torch.tensor([branch.source for branch in branches], device=device)
    fed = [torch.tensor(branch.ids) for branch in branches]
    ids_Rq = torch.nn.utils.rnn.pad_sequence(fed, batch_first=True).to(device)
    prompts = [batch[branch.source].prompt for branch in branches]
    start_RP1 = torch.stack([prompt.start for prompt in prompts])[:, :, None]
    step_RP1 = torch.stack([prompt.step for prompt in prompts])[:, :, None]
    positions_RPq = (start_RP1 + step_RP1 * torch.arange(ids_Rq.shape[1])).to(device)
    logits_RqV = network.step(ids_Rq, positions_RPq, state.take(sources))
    labels = [
        (row, place, label)
        for row, branch in enumerate(branches)
        for _, answer in branch.answers
        for place, label in enumerate(answer[1:])
    ]
    return _pick(logits_RqV, labels)


def _pick(logits_RqV: Tensor, labels: Sequence[tuple[int, int, int]]) -> list[float]:
    """log p in fp32 of labels (row, place, id), from logits of any floating dtype."""
    places_NV = logits_RqV.flatten(0, 1)
    total_N = torch.cat([chunk_nV.float().logsumexp(-1) for chunk_nV in places_NV.split(SUMMED)])
    rows_N, queries_N, labels_N = torch.tensor(labels, device=logits_RqV.device).unbind(1)
    places_N = rows_N * logits_RqV.shape[1] + queries_N
    return (places_NV[places_N, labels_N].float() - total_N[places_N]).tolist()
