"""From a job's updates to an answer: one JSON document, or chunks of an event stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from hanmo.generation.draws import Place
from hanmo.rows import Context
from hanmo.serving.errors import ClientGoneError, api_error, overloaded
from hanmo.serving.job import Ask, Job, Update
from hanmo.serving.metrics import Timing
from hanmo.serving.plan import Options
from hanmo.serving.replies import Piece, Transcript
from hanmo.serving.served import Served
from hanmo.serving.worker import Worker

# Seconds in which a client must read on. A slow client costs memory and never a row: its reply is decoded to the end.
SLOWEST = 300
EVENTS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx
}


class Form(Protocol):
    """How an endpoint writes choices; each method gives the fields of a choice besides its index."""

    prefix: str  # of the answer's id
    whole: str  # the ``object`` of an answer, and of a chunk
    chunk: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice, if there is one."""

    def piece(self, piece: Piece) -> dict[str, Any]: ...

    def ending(self, piece: Piece) -> dict[str, Any]:
        """The last chunk of a choice, without its text."""

    def choice(self, index: int, transcript: Transcript, pieces: list[Piece]) -> dict[str, Any]: ...


@dataclass
class Plan:
    """A request that has been read: the replies to decode, in order, and how to answer."""

    served: Served
    asks: list[Ask]
    prompt_tokens: int
    options: Options
    form: Form
    headers: Mapping[str, str] = field(default_factory=dict)


class Answer:
    """The answer to one plan while it grows."""

    def __init__(self, plan: Plan, timing: Timing, job: Job | None = None):
        self._plan, self._timing = plan, timing
        self._job: Any = job
        self._transcripts = [Transcript(plan.served, plan.options) for _ in plan.asks]
        self._about = {
            "id": f"{plan.form.prefix}-{uuid4().hex}",
            "created": int(time.time()),
            "model": plan.served.name,
            "system_fingerprint": None,
        }

    @property
    def _usage(self) -> dict[str, Any]:
        """The tokens of the prompts, and those that the texts were made of; stop tokens do not count."""
        given, made = self._plan.prompt_tokens, sum(len(one.ids) for one in self._transcripts)
        cached = {"cached_tokens": self._job.reused if self._job is not None else 0}
        return {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
            "prompt_tokens_details": cached,
        }

    async def pieces(self) -> AsyncIterator[tuple[int, Piece] | None]:
        """Pieces with the index of their choice; None where a stream should say that it is alive."""
        async for news in self._job.updates():
            if news is None:
                yield None
                continue
            index, update = news
            transcript = self._transcripts[index]
            piece = transcript.take(update)
            self._timing.update(index, len(update.ids))
            if piece.finish is not None and update.finish is None:
                self._job.cancel(index)
            following = self._following(index, update)
            if following is not None:
                piece.finish = None
            yield index, piece
            if following is not None:
                self._job.extend(index, following)
                yield index, transcript.separate()
            elif piece.finish is not None:
                self._timing.finished(piece.finish, len(transcript.ids), self._job.started_at)

    def _following(self, index: int, update: Update) -> Ask | None:
        """What is asked for the next blank of a text, after the model's reply to this one."""
        ask, ids = self._job.asks[index], self._transcripts[index].answer
        if update.finish not in ("stop", "length") or self._transcripts[index].finish != update.finish:
            return None
        following = self._plan.served.family.next_blank(ask.context.ids, ids)
        if following is None:
            return None
        record, choice, blank = ask.place
        return Ask(Context(following, following), ask.settings, Place(record, choice, blank + 1), ask.best)

    async def document(self) -> dict[str, Any]:
        """The whole answer."""
        collected: list[list[Piece]] = [[] for _ in self._transcripts]
        async for found in self.pieces():
            if found is not None:
                collected[found[0]].append(found[1])
        if any(transcript.finish == "shutdown" for transcript in self._transcripts):
            raise overloaded("the server ends before the reply does", "shutting_down")
        return self.assembled(collected)

    def assembled(self, collected: list[list[Piece]]) -> dict[str, Any]:
        """The whole answer from the pieces of each choice."""
        choices = [
            {"index": index, **self._plan.form.choice(index, transcript, pieces)}
            for index, (transcript, pieces) in enumerate(zip(self._transcripts, collected, strict=True))
        ]
        return {**self._about, "object": self._plan.form.whole, "choices": choices, "usage": self._usage}

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error in the middle is an event too."""
        form, options = self._plan.form, self._plan.options
        try:
            for index in range(len(self._transcripts)):
                if (opening := form.opening(index)) is not None:
                    yield self._chunk(index, opening)
            async for found in self.pieces():
                if found is None:
                    yield b": keep-alive\n\n"
                    continue
                index, piece = found
                if piece.text or piece.tokens:
                    yield self._chunk(index, form.piece(piece))
                if piece.finish is not None:
                    yield self._chunk(index, form.ending(piece))
            if options.usage:
                yield _event({**self._about, "object": form.chunk, "choices": [], "usage": self._usage})
        except (ClientGoneError, asyncio.CancelledError):
            raise
        except Exception as error:
            yield _event(api_error(error).body)
        yield b"data: [DONE]\n\n"

    def _chunk(self, index: int, choice: dict[str, Any]) -> bytes:
        usage: dict[str, Any] = {}
        if self._plan.options.usage or self._plan.options.continuous_usage:
            usage = {"usage": self._usage if self._plan.options.continuous_usage else None}
        choices = [{"index": index, **choice}]
        return _event({**self._about, "object": self._plan.form.chunk, "choices": choices, **usage})


def _event(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def finish_reason(finish: str | None) -> str | None:
    """The reason in the words of the API: what the server has cut is as if cut by its length."""
    return "length" if finish == "shutdown" else finish


async def answered(worker: Worker, plan: Plan, timing: Timing, request: Request) -> Response:
    """Decode a plan and answer it. ApiError before the first byte if the model refuses it."""
    job = await worker.submit(plan.served.name, plan.asks)
    answer = Answer(plan, timing, job)
    if plan.options.stream:
        return EventStream(answer, worker, job, {**EVENTS, **plan.headers})
    async with _watched(job, request.receive, worker):
        return JSONResponse(await answer.document(), headers=dict(plan.headers))


def echoed(plan: Plan, timing: Timing) -> dict[str, Any]:
    """The answer to a request of no new tokens."""
    return Answer(plan, timing).assembled([[Piece(finish="length")] for _ in plan.asks])


class EventStream(Response):
    """Sends an answer's events as they come; the job ends with the response, however that ends."""

    def __init__(self, answer: Answer, worker: Worker, job: Job, headers: dict[str, str]):
        self._answer, self._worker, self._job = answer, worker, job
        self.status_code = 200
        self.raw_headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with _watched(self._job, receive, self._worker):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._answer.events():
                await _sent(send, {"type": "http.response.body", "body": event, "more_body": True})
            await _sent(send, {"type": "http.response.body", "body": b"", "more_body": False})


async def _sent(send: Send, message: dict[str, Any]) -> None:
    """Send, unless the client does not read; ClientGoneError then."""
    try:
        await asyncio.wait_for(send(message), SLOWEST)
    except asyncio.TimeoutError:
        raise ClientGoneError from None


@asynccontextmanager
async def _watched(job: Job, receive: Receive, worker: Worker) -> AsyncIterator[None]:
    """Give the job up as soon as the client closes its connection, and in any case at the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        worker.close(job)
        with suppress(asyncio.CancelledError):
            await task
