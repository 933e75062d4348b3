"""Scores of candidates that share a context: the context is read once, every candidate goes on from there.

A question is a list of candidates, each a list of parts as ``Family.cloze`` makes them. What is not scored at the
beginning is its context. Where all candidates of a question have the same one, it is prefilled once, the first token
of every candidate is scored from that, and longer candidates are continued in one step from the expanded state. This
uses nothing but ``Family.prompt``, ``prefill``, ``step`` and ``state.take``, and so holds for every family: the encoder
of an encoder-decoder runs once, and the two-dimensional positions of a gap filler go on as in generation.
Any other question is scored row by row.

Shape suffixes: S questions, R candidates that are continued, q fed tokens, P position dimensions, V vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hanmo.errors import HanmoError
from hanmo.evaluation.scoring import Progress, RowScore, evaluating, score_rows
from hanmo.families.base import OpenedModel, Part, Prompt, stack
from hanmo.losses import token_logprobs

Candidate = Sequence[Part]
OnScored = Callable[[int, list[RowScore]], None]  # index of the question, scores of its candidates

BUDGET_CPU = 8192
BUDGET = 65536  # tokens that are in memory at the same time
LOGITS = 1 << 26  # logits that are in memory at the same time


@dataclass(frozen=True)
class _Question:
    """Attributes: ``index`` of the question; ``answers`` the scored ids of each candidate, the stop token included."""

    index: int
    prompt: Prompt
    answers: list[tuple[int, ...]]

    @property
    def width(self) -> int:
        """Tokens the network reads of the context."""
        return max(value.shape[-1] for value in self.prompt.inputs.values() if value.dim())

    @property
    def longest(self) -> int:
        return max(map(len, self.answers))


def score_candidates(
    opened: OpenedModel,
    questions: Sequence[Sequence[Candidate]],
    stop: bool = False,
    budget: int | None = None,
    progress: Progress | None = None,
    on_scored: OnScored | None = None,
) -> list[list[RowScore]]:
    """log p of every scored token of every candidate, by question.

    The result is that of scoring each candidate alone; in fp32 a token moves by less than 1e-5, whatever the batch.

    Args:
        stop: the stop token after a candidate is scored as well.
        budget: tokens in memory at the same time; it is halved whenever memory runs out. The default suits the device.
        progress: called with the questions done and their number.
        on_scored: called with each question as soon as it is done, not in order: questions of similar length share
            a batch, the longest come first.

    Raises:
        HanmoError: memory runs out even for one candidate at a time.
    """
    found: list[list[RowScore] | None] = [None] * len(questions)
    done = 0

    def finish(index: int, scores: list[RowScore]) -> None:
        nonlocal done
        found[index] = scores
        done += 1
        if on_scored is not None:
            on_scored(index, scores)
        if progress is not None:
            progress(done, len(questions))

    shared, apart = [], []
    for index, candidates in enumerate(questions):
        question = _shared(opened, index, candidates, stop)
        if question is None:
            apart.append(index)
        else:
            shared.append(question)
    shared.sort(key=lambda question: (-question.width, -question.longest))
    budget = budget or (BUDGET_CPU if opened.network.device.type == "cpu" else BUDGET)
    with evaluating(opened.network):
        while shared:
            batch = _batch(shared, budget)
            scores = _or_none_if_full(opened, batch, budget)
            if scores is None:
                budget = _halved(budget)
                continue
            for question, of_question in zip(batch, scores, strict=True):
                finish(question.index, of_question)
            del shared[: len(batch)]
    for index in apart:
        finish(index, score_alone(opened, questions[index], stop))
    return [scores for scores in found if scores is not None]


def score_alone(opened: OpenedModel, candidates: Sequence[Candidate], stop: bool = False) -> list[RowScore]:
    """One candidate after the other through the whole network: the definition that ``score_candidates`` meets."""
    return score_rows(opened, [opened.family.row(parts, stop=stop) for parts in candidates], batch_size=1)


def _shared(opened: OpenedModel, index: int, candidates: Sequence[Candidate], stop: bool) -> _Question | None:
    """The question as one prompt and its answers; None if its candidates do not go on from one context."""
    contexts, answers = set(), []
    for parts in candidates:
        first = next((place for place, part in enumerate(parts) if part.scored), len(parts))
        if first == len(parts) or not all(part.scored for part in parts[first:]) or len(parts) - first > 1:
            return None
        contexts.add(tuple(id_ for part in parts[:first] for id_ in part.ids))
        answers.append(parts[first].ids)
    if len(contexts) != 1 or not all(answers):
        return None
    prompt = opened.family.prompt(contexts.pop())
    return _Question(index, prompt, [(*ids, prompt.stop_ids[0]) if stop else ids for ids in answers])


def _batch(questions: Sequence[_Question], budget: int) -> list[_Question]:
    """The first questions, as many as fit: their contexts are read as one batch, the first being the widest."""
    fits = max(budget // questions[0].width, 1)
    return list(questions[:fits])


def _halved(budget: int) -> int:
    if budget == 1:
        raise HanmoError(
            "out of memory with a single candidate at a time; take a smaller model, a smaller limit, or bf16"
        )
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return budget // 2


def _or_none_if_full(opened: OpenedModel, batch: Sequence[_Question], budget: int) -> list[list[RowScore]] | None:
    try:
        return _score(opened, batch, budget)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:  # the CPU allocator has no class of its own
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        return None


def _score(opened: OpenedModel, batch: Sequence[_Question], budget: int) -> list[list[RowScore]]:
    network, device = opened.network, opened.network.device
    inputs = stack([question.prompt.inputs for question in batch], opened.family.padding, left=True)
    logits_S1V, state = network.prefill(**{name: value.to(device) for name, value in inputs.items()})
    rows = [(source, answer) for source, question in enumerate(batch) for answer in question.answers]
    sources = torch.tensor([source for source, _ in rows], device=device)
    firsts = torch.tensor([answer[0] for _, answer in rows], device=device)
    first_logprobs = (logits_S1V[:, -1].float().log_softmax(-1))[sources, firsts].tolist()
    logprobs = [[value] for value in first_logprobs]
    longer = sorted(
        (row for row, (_, answer) in enumerate(rows) if len(answer) > 1),
        key=lambda row: (-len(rows[row][1]), rows[row][0]),
    )
    for chunk in _chunks(longer, rows, batch[0].width, budget, LOGITS // logits_S1V.shape[-1]):
        for row, values in zip(chunk, _continue(network, state, batch, [rows[row] for row in chunk]), strict=True):
            logprobs[row] += values
    scores: list[list[RowScore]] = [[] for _ in batch]
    for (source, _), values in zip(rows, logprobs, strict=True):
        scores[source].append(RowScore(tuple(values)))
    return scores


def _chunks(
    longer: Sequence[int], rows: Sequence[tuple[int, tuple[int, ...]]], width: int, budget: int, places: int
) -> Iterator[list[int]]:
    """Candidates to be continued together, the longest first; grouped by question, so that sources stay shared."""
    start = 0
    while start < len(longer):
        length = len(rows[longer[start]][1])
        fits = max(min(budget // (width + length), places // length), 1)
        yield sorted(longer[start : start + fits], key=lambda row: rows[row][0])
        start += fits


def _continue(
    network: Any, state: Any, batch: Sequence[_Question], rows: Sequence[tuple[int, tuple[int, ...]]]
) -> list[list[float]]:
    """log p of all but the first token of each candidate: all fed in one step.

    Shorter ones are filled up behind their end, where nothing that counts can see it.
    """
    device = network.device
    sources = torch.tensor([source for source, _ in rows], device=device)
    fed = [torch.tensor(answer[:-1]) for _, answer in rows]
    ids_Rq = torch.nn.utils.rnn.pad_sequence(fed, batch_first=True).to(device)
    logits_RqV = network.step(ids_Rq, _positions(batch, rows, ids_Rq.shape[1]).to(device), state.take(sources))
    labels = torch.cat([torch.tensor(answer[1:]) for _, answer in rows]).to(device)
    real_Rq = torch.arange(ids_Rq.shape[1]) < torch.tensor([len(ids) for ids in fed])[:, None]
    found = token_logprobs(logits_RqV[real_Rq.to(device)], labels).cpu()
    return [values.tolist() for values in found.split([len(ids) for ids in fed])]


def _positions(batch: Sequence[_Question], rows: Sequence[tuple[int, tuple[int, ...]]], queries: int) -> Tensor:
    """(R, P, q), see ``Prompt``."""
    prompts = [batch[source].prompt for source, _ in rows]
    start_RP1 = torch.stack([prompt.start for prompt in prompts])[:, :, None]
    step_RP1 = torch.stack([prompt.step for prompt in prompts])[:, :, None]
    return start_RP1 + step_RP1 * torch.arange(queries)
