"""The process that serves: routes, socket, signals, and the end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from hanmo.errors import ConfigError, HanmoError
from hanmo.generation.engine import Engine
from hanmo.serving import tools
from hanmo.serving.api import Api
from hanmo.serving.chat import chat_completions
from hanmo.serving.completions import completions
from hanmo.serving.guard import LOCAL, Guard, is_local
from hanmo.serving.metrics import Metrics
from hanmo.serving.scores import score
from hanmo.serving.served import Served
from hanmo.serving.worker import Worker

GRACE = 5  # seconds that replies may go on after the signal to end
LAST = 9  # seconds after which what is left is cut off
LINGER = 3  # seconds in which a server without its worker says so before it ends
Endpoint = Callable[[Api, Request], Awaitable[Response]]
ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/v1/models", tools.models),
    ("GET", "/v1/models/{name:path}", tools.model),
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/tokenize", tools.tokenize),
    ("POST", "/detokenize", tools.detokenize),
    ("GET", "/tokenizer_info", tools.tokenizer_info),
    ("POST", "/apply-template", tools.apply_template),
    ("POST", "/score", score),
    ("POST", "/v1/score", score),
    ("GET", "/health", tools.health),
    ("GET", "/ping", tools.health),
    ("GET", "/version", tools.version),
    ("GET", "/load", tools.load),
    ("GET", "/metrics", tools.metrics),
)


@dataclass(frozen=True)
class Place:
    """Where to listen, and whom to hear.

    Attributes:
        port: 0 takes any free one.
        key: what requests must carry; needed where other machines reach the server.
        hosts: further names by which requests may call it.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    hosts: tuple[str, ...] = ()

    def check(self) -> None:
        """ConfigError for a place that is not safe."""
        if self.key is not None and not self.key.strip():
            raise ConfigError("the API key is empty; give --api-key or HANMO_API_KEY a value, or neither")
        if not is_local(self.host) and self.key is None:
            raise ConfigError(
                f"--host {self.host}: other machines reach this address, so an API key is needed: set HANMO_API_KEY or "
                "give --api-key"
            )

    def listening(self) -> socket.socket:
        """A socket that listens; ConfigError where that is not possible or not safe."""
        self.check()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=2048)
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise ConfigError(
                f"cannot listen at {self.host}, port {self.port}: {reason}; take another --port"
            ) from None

    @property
    def allowed(self) -> frozenset[str] | None:
        """The names that requests may use; any, where other machines ask with a key and no names are given."""
        return LOCAL | {self.host, *self.hosts} if self.hosts or is_local(self.host) else None


class Server(uvicorn.Server):
    """uvicorn's server with an orderly end: replies may go on for a while, then end where they are."""

    def __init__(self, models: Sequence[Served], engines: Mapping[str, Engine], place: Place, queue: int, names: str):
        self.worker = Worker(engines, queue, on_death=self._on_death)
        metrics = Metrics(self.worker, names)
        self._api = Api({served.name: served for served in models}, self.worker, metrics)
        routes = [Route(path, partial(call, self._api), methods=[method]) for method, path, call in ROUTES]
        app = Guard(Router(routes, redirect_slashes=False), metrics, place.key, place.allowed)
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=LAST,
            )
        )

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.worker.start()
        try:
            await super().serve(sockets)
        finally:
            self.worker.stop()
            self._api.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.worker.closing = True
        asyncio.get_running_loop().call_later(GRACE, self.worker.end_jobs)
        await super().shutdown(sockets)

    def _on_death(self) -> None:
        """Say for a while that the server is no longer healthy, then end."""
        asyncio.get_running_loop().call_later(LINGER, setattr, self, "should_exit", True)


def serve_models(
    models: Sequence[Served], engines: Mapping[str, Engine], place: Place, queue: int = 256, names: str = "hanmo"
) -> None:
    """Serve models until a signal ends it.

    Args:
        engines: by the name of the model.
        queue: replies that may wait for a row.
        names: before the names of metrics.

    Raises:
        ConfigError: the address cannot be listened at, or not safely.
        HanmoError: the worker has died.
    """
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    with place.listening() as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        server = Server(models, engines, place, queue, names)
        print(
            f"hanmo: {', '.join(one.name for one in models)} at http://{shown}:{port}/v1 (Ctrl-C ends)", file=sys.stderr
        )
        server.run([listening])
    if server.worker.dead is not None:
        raise HanmoError(f"the worker that computes replies has died: {server.worker.dead}")
