"""Log-probabilities of given ids, and ``POST /score``: rewards, or the log-likelihood of candidates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hanmo.evaluation.engine import row_scores
from hanmo.families.base import OpenedModel
from hanmo.nn.finite import require_finite
from hanmo.nn.row_model import evaluating
from hanmo.records import PromptResponse
from hanmo.rows import IGNORE, Part, Row, collate, common_length
from hanmo.serving.api import Api, ignored_header, while_connected
from hanmo.serving.errors import ApiError
from hanmo.serving.fields import Fields
from hanmo.serving.served import Served
from hanmo.training.rl.rewards import score_rows

PLACES = 256  # places whose log-probabilities are in memory at the same time
MOST_TEXTS = 128  # of one request
BATCH = 8  # texts that are scored together
Scored = tuple[float, list[tuple[int, float]]]  # log p of a token, and the most likely tokens with theirs


def given_row(served: Served, ids: Sequence[int], split: int | None) -> Row | None:
    """The row that scores given ids behind the first ``split``; None if none of them is predicted from text before it.

    Without a split, all but the first id of a decoder's text are scored, and no id of a text for an encoder or with blanks.
    """
    if split is None:
        split = 1 if served.is_decoder(ids) else len(ids)
    if split >= len(ids):
        return None
    parts = [Part(tuple(ids[:split]), False), Part(tuple(ids[split:]), True)]
    return served.family.row(parts, stop=False)


def score_given(opened: OpenedModel, row: Row, best: int) -> list[Scored]:
    """log p of each scored token of a row, under the network as it is, and the ``best`` most likely tokens there.

    In the inference thread. NotANumberError if the network computes NaN or infinity.
    """
    network = opened.network
    batch = {name: value.to(network.device) for name, value in collate([row], opened.family.padding).items()}
    labels_A = batch.pop("labels")[0]
    batch.pop("weights")
    scored_A = labels_A != IGNORE
    found: list[Scored] = []
    with evaluating(network):
        logits_NV = network(**batch).logits[0, : len(labels_A)][scored_A]
        for logits_nV, labels_n in zip(logits_NV.split(PLACES), labels_A[scored_A].split(PLACES), strict=True):
            logprobs_nV = logits_nV.float().log_softmax(-1)
            chosen = logprobs_nV.gather(-1, labels_n[:, None])[:, 0].tolist()
            require_finite(chosen, network)
            values_nc, ids_nc = logprobs_nV.topk(min(best, logprobs_nV.shape[-1]))
            pairs = zip(ids_nc.tolist(), values_nc.tolist(), strict=True)
            tops = [list(zip(*pair, strict=True)) for pair in pairs]
            found += zip(chosen, tops, strict=True)
    return found


async def score(api: Api, request: Request) -> Response:
    """A number for each pair of texts: the reward of the second as an answer to the first, or its log-likelihood."""
    fields = await api.fields(request)
    served = api.model(fields)
    pairs = _pairs(fields)
    ids = {"id": f"score-{uuid4().hex}", "object": "list", "created": int(time.time()), "model": served.name}
    if served.opened.network.value_head is not None:
        rows = await api.read(_answer_rows, served, pairs)
        score_them: Any = partial(score_rows, served.opened, rows, [True] * len(rows), BATCH)
        scores = await while_connected(request, api.worker.run(score_them))
    else:
        rows = await api.read(_candidates, served, pairs)
        made = [served.family.row(parts, stop=False) for parts in rows]
        found = await while_connected(
            request, api.worker.run(partial(row_scores.score_rows, served.opened, made, BATCH))
        )
        scores = [-one.nll for one in found]
    tokens = sum(len(part.ids) for row in rows for part in row)
    return JSONResponse(
        {
            **ids,
            "data": [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        },
        headers=ignored_header(fields),
    )


def _pairs(fields: Fields) -> list[tuple[str, str]]:
    """One first text for all second ones, or one for each."""
    for one, two in (("text_1", "text_2"), ("queries", "documents"), ("query", "items"), ("data_1", "data_2")):
        if fields.given(one, two):
            firsts, seconds = fields.texts(one, MOST_TEXTS), fields.texts(two, MOST_TEXTS)
            break
    else:
        raise ApiError("expected text_1 and text_2, or queries and documents", "text_1")
    if not firsts or not seconds:
        raise ApiError(f"{two if firsts else one} is missing", two if firsts else one)
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if len(firsts) != len(seconds):
        raise ApiError(f"{len(firsts)} of {one} and {len(seconds)} of {two}: expected one, or as many", one)
    return list(zip(firsts, seconds, strict=True))


def _answer_rows(served: Served, pairs: Sequence[tuple[str, str]]) -> list[list[Part]]:
    rows = []
    for number, (prompt, answer) in enumerate(pairs):
        found = served.family.parts(PromptResponse(prompt, answer), served.longest)
        whole = served.family.parts(PromptResponse(prompt, answer), 2 * served.longest)
        if not found or found != whole:
            raise served.too_long_pair(number)
        rows.append(found[0])
    return rows


def _candidates(served: Served, pairs: Sequence[tuple[str, str]]) -> list[list[Part]]:
    """The second texts as candidates after the first ones; tokens may cross the boundary, and are scored then."""
    rows = []
    for number, (before, answer) in enumerate(pairs):
        try:
            whole, given = (_ids(served.family.cloze(before, [text])[0]) for text in (answer, ""))
        except IndexError:  # a text without tokens
            raise served.too_long_pair(number) from None
        shared = min(common_length(whole, given), len(whole) - 1)
        if shared < 1 or len(whole) > served.longest:
            raise served.too_long_pair(number)
        rows.append([Part(whole[:shared], False), Part(whole[shared:], True)])
    return rows


def _ids(parts: Sequence[Part]) -> tuple[int, ...]:
    return tuple(id_ for part in parts for id_ in part.ids)
