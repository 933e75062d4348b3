"""``POST /v1/completions``: texts or token ids go on, with the log-probabilities of what was given on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hanmo.generation.draws import Place
from hanmo.rows import Context, Row
from hanmo.serving.answers import Plan, answered, echoed, finish_reason
from hanmo.serving.api import Api, ignored_header, while_connected
from hanmo.serving.errors import ApiError
from hanmo.serving.fields import Fields, are_ids
from hanmo.serving.job import Ask
from hanmo.serving.logprobs import LogprobForms
from hanmo.serving.metrics import Timing
from hanmo.serving.plan import (
    MOST_ALTERNATIVES,
    MOST_CHOICES,
    MOST_TOKENS,
    Options,
    read_options,
    read_settings,
    refuse_unsupported,
    with_length,
)
from hanmo.serving.replies import Piece, Token, Transcript
from hanmo.serving.scores import Scored, given_row, score_given
from hanmo.serving.served import Served
from hanmo.serving.text import Pieces

DEFAULT_LENGTH = 16  # tokens of a reply, as OpenAI's


@dataclass(frozen=True)
class Given:
    """A prompt: its context and its text; ``row``: what scores its ids, if they are to be scored."""

    context: Context
    text: str
    row: Row | None = None


async def completions(api: Api, request: Request) -> Response:
    fields = await api.fields(request)
    served = api.model(fields)
    timing = Timing(api.metrics, served.name)
    plan, prompts = await api.read(_completion_plan, served, fields)
    timing.planned(plan.prompt_tokens, plan.options.choices, plan.asks[0].settings.max_new_tokens)
    form = plan.form
    assert isinstance(form, CompletionForm)
    if form.echo and plan.options.alternatives is not None:
        scores = [
            api.worker.run(partial(score_given, served.opened, given.row, plan.options.alternatives))
            for given in prompts
            if given.row is not None
        ]
        form.add_scores(iter(await while_connected(request, asyncio.gather(*scores))))
    if form.only_echo:
        return JSONResponse(echoed(plan, timing), headers=dict(plan.headers))
    return await answered(api.worker, plan, timing, request)


def _completion_plan(served: Served, fields: Fields) -> tuple[Plan, list[Given]]:
    """A request as a plan, and its prompts; in the thread that tokenises."""
    refuse_unsupported(fields)
    for name in ("messages", "tools"):
        if fields.value(name):
            raise ApiError(f"{name} is a field of /v1/chat/completions; this endpoint takes a prompt", name)
    echo, least = fields.flag("echo"), 1
    options = read_options(fields, fields.whole("logprobs", 0, MOST_ALTERNATIVES), served.vocabulary)
    settings = read_settings(fields, served, options)
    if echo and not options.stream:
        least = 0
    wanted = fields.whole("max_tokens", least, MOST_TOKENS, DEFAULT_LENGTH)
    scored = echo and options.alternatives is not None
    prompts = [_given(served, fields, one, scored) for one in _prompts(fields, served)]
    if len(prompts) * options.choices > MOST_CHOICES:
        raise ApiError(f"{len(prompts)} prompts x n={options.choices}: at most {MOST_CHOICES} replies", "n")
    if scored and options.stream:
        raise ApiError("echo with logprobs is one document: stream must be false", "stream")
    rooms = [served.room(given.context, wanted, "prompt") for given in prompts]
    asks = [
        Ask(
            given.context, with_length(settings, fields, max(room, 1)), Place(record, choice), options.alternatives or 0
        )
        for record, (given, room) in enumerate(zip(prompts, rooms, strict=True))
        for choice in range(options.choices)
    ]
    if fields.given("split") and wanted:
        raise ApiError("split is for the scores of given ids: max_tokens must be 0, with echo and logprobs", "split")
    form = CompletionForm(served, options, prompts, echo, only_echo=wanted == 0)
    tokens = sum(len(given.context.ids) for given in prompts)
    return Plan(served, asks, tokens, options, form, ignored_header(fields)), prompts


def _prompts(fields: Fields, served: Served) -> list[str | list[int]]:
    """A text, ids, or a list of texts or of lists of ids, as a list."""
    prompt = fields.value("prompt")
    if isinstance(prompt, str) or (are_ids(prompt, served.vocabulary) and prompt):
        prompt = [prompt]
    texts = isinstance(prompt, list) and all(isinstance(one, str) for one in prompt)
    ids = isinstance(prompt, list) and all(are_ids(one, served.vocabulary) and one for one in prompt)
    if isinstance(prompt, list) and any(isinstance(one, list | int | float) for one in prompt) and not ids:
        nested = any(isinstance(one, list) for one in prompt)
        fields.require_ids("prompt", prompt if nested else [prompt], served.vocabulary)
    if not prompt or not (texts or ids):
        fields.wrong("prompt", f"text, token ids between 0 and {served.vocabulary - 1}, or a list of these, none empty")
    if len(prompt) > MOST_CHOICES:
        raise ApiError(f"{len(prompt)} prompts; at most {MOST_CHOICES}", "prompt")
    if "" in prompt:
        raise ApiError("the prompt is empty: expected a text to continue", "prompt")
    return prompt


def _given(served: Served, fields: Fields, prompt: str | list[int], scored: bool) -> Given:
    suffix, split = fields.text("suffix"), fields.whole("split", 1, MOST_TOKENS)
    limit = fields.whole("truncate_prompt_tokens", -1, MOST_TOKENS)
    limit = served.longest if limit == -1 else limit or None
    if suffix:
        if not served.family.blank or not isinstance(prompt, str):
            problem = "expects a prompt that is text" if served.family.blank else "is not supported by this model"
            raise ApiError(f"suffix {problem}: only models that fill blanks know what comes after a gap", "suffix")
        prompt = prompt + served.family.blank + suffix
    if isinstance(prompt, str):
        context = served.of_text(prompt, limit, fields.flag("add_special_tokens", default=True))
    else:
        context = served.of_ids(prompt, limit)
    text = prompt if isinstance(prompt, str) and limit is None else served.family.decode(context.ids)
    return Given(context, text, given_row(served, context.ids, split) if scored else None)


class CompletionForm:
    """Choices of completions; with ``echo`` the prompt stands before the reply, with its scores if there are any."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, served: Served, options: Options, prompts: Sequence[Given], echo: bool, only_echo: bool):
        self._served, self._options, self._prompts = served, options, prompts
        self.echo, self.only_echo = echo, only_echo
        self._logprobs = LogprobForms(served, options.alternatives or 0, options.tokens_as_ids)
        self._scores: list[list[Scored]] = [[] for _ in prompts]

    def add_scores(self, scores: Any) -> None:
        """The scores of the prompts that have a row, in order."""
        self._scores = [next(scores) if given.row is not None else [] for given in self._prompts]

    def _prompt(self, index: int) -> Given:
        return self._prompts[index // self._options.choices]

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._choice(self._prompt(index).text, None) if self.echo else None

    def piece(self, piece: Piece) -> dict[str, Any]:
        return self._choice(piece.text, self._told(piece.tokens))

    def ending(self, piece: Piece) -> dict[str, Any]:
        return self._choice("", self._told([piece.end] if piece.end else []), piece)

    def choice(self, index: int, transcript: Transcript, pieces: list[Piece]) -> dict[str, Any]:
        given, tokens = self._prompt(index), [token for piece in pieces for token in piece.tokens]
        tokens += [piece.end for piece in pieces if piece.end is not None]
        if self.echo:
            tokens = [
                *self._echoed_tokens(index),
                *(replace(one, offset=one.offset + len(given.text)) for one in tokens),
            ]
        text = (given.text if self.echo else "") + transcript.text
        ids = {"token_ids": transcript.ids, "prompt_token_ids": given.context.ids} if self._options.ids else {}
        return {**self._choice(text, self._told(tokens), pieces[-1]), **ids}

    def _echoed_tokens(self, index: int) -> list[Token]:
        """The tokens of a prompt; those without a score have nothing before them that predicts them."""
        given, scores = self._prompt(index), self._scores[index // self._options.choices]
        ids = given.context.ids
        if self._options.alternatives is None:
            return []
        missing: list[tuple[None, list[tuple[int, float]]]] = [(None, [])] * (len(ids) - len(scores))
        tokens, offset, pieces = [], 0, Pieces(self._served.decode)
        for id_, (logprob, best) in zip(ids, [*missing, *scores], strict=True):
            tokens.append(Token(id_, logprob, best, min(offset, len(given.text))))
            offset += len(pieces.add(id_))
        return tokens

    def _told(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._options.alternatives is None:
            return None
        return self._logprobs.completion(tokens)

    def _choice(self, text: str, logprobs: dict[str, Any] | None, end: Piece | None = None) -> dict[str, Any]:
        ended = {"finish_reason": None, "stop_reason": None}
        if end is not None:
            ended = {"finish_reason": finish_reason(end.finish), "stop_reason": end.stop}  # type: ignore[dict-item]
        return {"text": text, "logprobs": logprobs, **ended}
