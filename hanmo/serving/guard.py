"""What stands before every endpoint: who may ask, how errors are told, and the line of the log."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Collection
from hashlib import sha256
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hanmo.errors import HanmoError
from hanmo.serving.errors import RETRY, ApiError, ClientGoneError, api_error, overloaded
from hanmo.serving.metrics import Metrics

LOG = logging.getLogger("hanmo.serving")
OPEN = ("/health", "/ping")  # need no key: load balancers have none
MOST_REQUESTS = 512  # that are open at the same time; each may hold a body in memory
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_GONE = 499  # in the log alone


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Wraps the routes.

    Args:
        key: the key that requests must carry, if any; only its hash is kept.
        hosts: the names by which requests may call this server; None for any.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, key: str | None, hosts: Collection[str] | None):
        self._app, self._metrics, self._hosts = app, metrics, hosts
        self._key = None if key is None else _hashed(key.encode())
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        path = re.sub("/{2,}", "/", scope["path"])
        scope = {**scope, "app": self, "path": path.rstrip("/") or "/"}
        answer = _Answer(send, headers.get("x-request-id", ""))
        began, self._open = time.monotonic(), self._open + 1
        try:
            self._check(scope, headers)
            await self._app(scope, receive, answer.send)
        except ClientGoneError:
            answer.status = _GONE
        except HTTPException as error:
            await answer.refuse(_http_error(error, scope), scope, receive)
        except Exception as error:
            told = api_error(error)
            if told.status >= 500 and not isinstance(error, ApiError | HanmoError):
                LOG.exception("%s %s", scope["method"], ascii(path))
            if told.headers == RETRY:
                self._metrics.rejections.labels(told.code).inc()
            await answer.refuse(told, scope, receive)
        finally:
            self._open -= 1
            took = time.monotonic() - began
            LOG.info("%s %s %s %.3f s %s", scope["method"], ascii(path), answer.status, took, answer.request_id)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if scope["path"] in OPEN:
            return
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and host and _name(host) not in self._hosts:
            raise ApiError("this server is not called by that name: see --allowed-host", None, "host_not_allowed", 403)
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError("pages of other origins may not ask this server", None, "origin_not_allowed", 403)
        if self._key is not None and scope["method"] != "OPTIONS":
            given = headers.get("authorization", "").partition(" ")[2].strip()
            if not hmac.compare_digest(_hashed(given.encode("latin-1", "replace")), self._key):
                problem = "the API key is missing or wrong: expected the header Authorization: Bearer KEY"
                raise ApiError(problem, None, "invalid_api_key", 401, {"WWW-Authenticate": "Bearer"})
        if self._open > MOST_REQUESTS:
            raise overloaded(f"{MOST_REQUESTS} requests are open already; try later", "too_many_requests")


class _Answer:
    """The way back to the client, which adds the id of the request."""

    def __init__(self, send: Send, request_id: str):
        self.request_id = request_id if _ID.fullmatch(request_id) else uuid4().hex
        self.status: int | None = None  # None: nothing was sent
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Send an error, if nothing was sent before."""
        if self.status is None:
            response = JSONResponse(error.body, error.status, error.headers)
            await response(scope, receive, self.send)


def _hashed(key: bytes) -> bytes:
    return sha256(key).digest()


def _name(host: str) -> str:
    """A host without its port."""
    return (urlsplit(f"//{host}").hostname or "").lower()


def _http_error(error: HTTPException, scope: Scope) -> ApiError:
    """What the routes refuse."""
    allowed = dict(error.headers or {})
    if error.status_code == 405:
        return ApiError(f"{scope['method']} is not for this path", None, "method_not_allowed", 405, allowed)
    problem = f"no such path: {scope['path'][:100]!r}; hanmo serves /v1/models, /v1/chat/completions, /v1/completions"
    return ApiError(problem, None, "not_found", error.status_code, allowed)
