"""Questions whose candidates are read in one pass: a row holds whole trees, in which a token sees only its own past.

The tree of a question is its context and the branches of its candidates, which share a common beginning. A mask hides
branches and trees from each other, and positions count along each branch. So no token is read twice, and little is
padding. Sliding windows, recurrence and positions that count columns would make scores wrong: a probe finds them.

Shape suffixes: B rows, T tokens of a row, D width, N predicting places, V vocabulary, M labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hanmo.errors import reraise_out_of_memory
from hanmo.evaluation.engine.row_scores import RowScore, score_rows
from hanmo.families.base import OpenedModel
from hanmo.rows import Part, Prompt

WIDEST = 768  # tokens of the largest tree: attention looks at all pairs of a row, whether or not they see each other
FILLED = 384  # a row with fewer tokens than this takes further trees
SUMMED = 256  # places whose logits exist at the same time
WORTH = 8  # times WIDEST: the tokens to score from which the probe, which reads WIDEST twice, pays off
PROBE_TOLERANCE = 1e-5  # of log p, relative to the largest: networks that ignore the mask are off by far more
PROBE_CONTEXT, PROBE_SPARE = 8, 40  # tokens of the context of the probe's large tree, and of all but its long branches


@dataclass(frozen=True)
class Tree:
    """The tokens of the question ``number``, the context first."""

    number: int
    ids: list[int]
    positions: list[int]
    parents: list[int]  # the place of the token before each, -1 for the first
    reads: list[list[tuple[int, int]]]  # for each answer the places that predict its tokens, and the tokens

    @property
    def size(self) -> int:
        return len(self.ids)


def plant(number: int, prompt: Prompt, answers: Sequence[Sequence[int]]) -> Tree:
    """The tree of a question; the last token of an answer is predicted and never read."""
    ids = prompt.inputs["input_ids"].tolist()
    positions = prompt.inputs["position_ids"].tolist()
    context = len(ids)
    parents = list(range(-1, context - 1))
    known: dict[tuple[int, int], int] = {}
    reads = []
    for answer in answers:
        place, read = context - 1, []
        for depth, token in enumerate(answer[:-1]):
            read.append((place, token))
            child = known.setdefault((place, token), len(ids))
            if child == len(ids):
                ids.append(token)
                positions.append(int(prompt.start + depth * prompt.step))
                parents.append(place)
            place = child
        reads.append([*read, (place, answer[-1])])
    return Tree(number, ids, positions, parents, reads)


def exact(opened: OpenedModel, tokens: int) -> bool:
    """Whether this network may read trees of up to ``WIDEST`` tokens; probed once, if there are ``tokens`` enough."""
    network = opened.network
    if network.trees_are_exact is None:
        if tokens < WORTH * WIDEST:
            return False
        network.trees_are_exact = probe(opened)
    return bool(network.trees_are_exact)


def probe(opened: OpenedModel) -> bool:
    """Compare with ``score_rows`` on drawn ids: a path as long as a tree allows, and a branch as far from its context.

    Only in fp32: with fewer bits rounding would hide what a window leaves out.
    """
    network, config = opened.network, opened.network.config.get_text_config()
    if network.dtype != torch.float32 or config.is_encoder_decoder:
        return False
    rng = Random(0)
    longest = min(WIDEST, getattr(config, "max_position_embeddings", None) or WIDEST)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(config.vocab_size) for _ in range(count))

    opening = drawn(2)
    small = (drawn(6), [opening + drawn(2), opening + drawn(4), drawn(3)])
    long: list[tuple[int, ...]] = []
    while (room := WIDEST - PROBE_SPARE - sum(map(len, long))) > 0:
        long.append(drawn(min(room, longest - PROBE_CONTEXT)))
    questions = [small, (drawn(PROBE_CONTEXT), [*long, drawn(3)])]
    trees = [plant(0, opened.family.prompt(context), answers) for context, answers in questions]
    parts = [[Part(context, False), Part(answer, True)] for context, answers in questions for answer in answers]
    rows = [opened.family.row(one, stop=False) for one in parts]
    try:
        together = [score for scores in read(opened, [trees]) for score in scores]
        alone = score_rows(opened, rows, batch_size=1)
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reraise_out_of_memory(error)
        return False  # built differently: takes no mask of this form, or no positions
    found, expected = (torch.tensor([p for one in scores for p in one.logprobs]) for scores in (together, alone))
    return bool((found - expected).abs().max() <= PROBE_TOLERANCE * expected.abs().max().clamp_min(1))


def rows_of(trees: Sequence[Tree]) -> Iterator[list[Tree]]:
    """Trees that share a row, the largest first; each row is filled up with the largest that still fit."""
    left = sorted(trees, key=lambda tree: -tree.size)
    while left:
        row, others = [left[0]], []
        room = FILLED - left[0].size
        for tree in left[1:]:
            if tree.size <= room:
                row.append(tree)
                room -= tree.size
            else:
                others.append(tree)
        yield row
        left = others


def read(opened: OpenedModel, rows: Sequence[Sequence[Tree]]) -> list[list[RowScore]]:
    """The scores of all answers of all trees, row by row."""
    network = opened.network
    width = max(sum(tree.size for tree in row) for row in rows)
    ids_BT, positions_BT = np.zeros((2, len(rows), width), dtype=np.int64)
    sees_BTT = np.repeat(np.eye(width, dtype=bool)[None], len(rows), axis=0)
    wanted: list[list[list[tuple[int, int]]]] = []
    for number, row in enumerate(rows):
        start = 0
        for tree in row:
            own = slice(start, start + tree.size)
            ids_BT[number, own], positions_BT[number, own] = tree.ids, tree.positions
            for place, parent in enumerate(tree.parents, start):
                if parent >= 0:
                    sees_BTT[number, place, own] |= sees_BTT[number, start + parent, own]
            first = number * width + start
            wanted.append([[(first + place, token) for place, token in answer] for answer in tree.reads])
            start += tree.size
    inputs = [torch.from_numpy(array).to(network.device) for array in (ids_BT, positions_BT, sees_BTT)]
    hidden_BTD = network.tree(*inputs)
    pairs = list(dict.fromkeys(pair for answers in wanted for answer in answers for pair in answer))
    found = dict(zip(pairs, _logprobs(network.get_output_embeddings(), hidden_BTD.flatten(0, 1), pairs), strict=True))
    return [[RowScore(tuple(found[pair] for pair in answer)) for answer in answers] for answers in wanted]


def _logprobs(head: Any, hidden_ND: Tensor, pairs: Sequence[tuple[int, int]]) -> list[float]:
    """log p in fp32 of (place, token) pairs; logits are computed for these places only, some at a time."""
    places_M, labels_M = torch.tensor(pairs, device=hidden_ND.device).unbind(1)
    places_N, number_M = places_M.unique(return_inverse=True)
    found_M = torch.empty(len(pairs), device=hidden_ND.device)
    for start in range(0, len(places_N), SUMMED):
        logits_nV = head(hidden_ND[places_N[start : start + SUMMED]]).float()
        here = (number_M >= start) & (number_M < start + SUMMED)
        rows = number_M[here] - start
        found_M[here] = logits_nV[rows, labels_M[here]] - logits_nV.logsumexp(-1)[rows]
    return found_M.tolist()
