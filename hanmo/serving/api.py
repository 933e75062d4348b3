"""What the endpoints share: the models by name, the worker, and the thread that reads requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from hanmo.serving.errors import ApiError, ClientGoneError
from hanmo.serving.fields import BODY, Fields, json_object
from hanmo.serving.metrics import Metrics
from hanmo.serving.plan import IGNORED
from hanmo.serving.served import Served
from hanmo.serving.worker import Worker

T = TypeVar("T")
SENT = 30  # seconds in which a request's body must arrive


@dataclass
class Api:
    models: Mapping[str, Served]
    worker: Worker
    metrics: Metrics
    # One thread: fast tokenizers refuse to be used by two at a time.
    _reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "hanmo reader"))

    async def fields(self, request: Request) -> Fields:
        """The fields of a request's body."""
        try:
            body = await asyncio.wait_for(_body(request), SENT)
        except asyncio.TimeoutError:
            raise ApiError(f"the body did not arrive within {SENT} seconds", status=408) from None
        return Fields(json_object(body))

    def model(self, fields: Fields) -> Served:
        """The model that a request names, or the only one."""
        name = fields.text("model")
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None:
            raise ApiError(f"this server has several models: {', '.join(self.models)}; name one", "model")
        return self.named(name)

    def named(self, name: str) -> Served:
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(f"the model {name[:100]!r} does not exist; known: {known}", "model", "model_not_found", 404)
        return self.models[name]

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """The result of a function that tokenises, without a wait of the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, function, *args)

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)


def ignored_header(fields: Fields) -> dict[str, str]:
    """The fields of a request that nobody knows, so that a misspelled one is seen."""
    names = fields.ignored(IGNORED)
    return {"x-hanmo-ignored": ", ".join(names)} if names else {}


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of work that is given up when the client leaves; ClientGoneError then."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _body(request: Request) -> bytes:
    """The body of a request, which may not be longer than ``BODY``."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > BODY:
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large() -> ApiError:
    return ApiError(f"the body is larger than {BODY:,} bytes", status=413)
