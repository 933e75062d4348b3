"""A server in this process on a port of its own, an engine that tests can steer, and a client of plain bytes."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hanmo.checkpoints import open_model
from hanmo.errors import HanmoError
from hanmo.families.base import OpenedModel
from hanmo.generation.draws import Place
from hanmo.generation.engine import Engine
from hanmo.generation.settings import Settings
from hanmo.rows import Context
from hanmo.serving.served import Served
from hanmo.serving.server import Place as Address
from hanmo.serving.server import Server
from tests.unit.transformers_models import _SMALL, SPECIALS, TEMPLATE

LIMIT = 60  # seconds that a test waits for what must come
Script = Callable[[Context, Settings, Place], tuple[Sequence[int], bool]]  # -> the ids of a reply, and whether it stops


@dataclass
class FakeReply:
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    best: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: str | None = None
    stop: int | None = None


@dataclass(eq=False)
class FakeGroup:
    script: list[int]
    stops: bool
    longest: int
    best: int
    replies: list[FakeReply] = field(default_factory=lambda: [FakeReply()])
    started: bool = False
    reused: int = 0
    done: bool = False
    error: HanmoError | None = None


class FakeEngine:
    """The engine's contract with replies from a script, one token a step.

    Attributes:
        model: as in ``Engine``.
        gate: a step waits until it is open.
        calls: the settings that requests were added with, in order.
        broken: raised by the next step.
        refusal: raised by ``add``.
        error: ends every reply of the next step.
        pause: seconds that a step takes.
    """

    def __init__(self, opened: OpenedModel, script: Script, most_rows: int = 16):
        self.model, self.script, self._most_rows = opened, script, most_rows
        self.beginnings = None
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[tuple[Context, Settings, Place]] = []
        self.broken: BaseException | None = None
        self.refusal: HanmoError | None = None
        self.error: HanmoError | None = None
        self.pause = 0.0
        self._waiting: list[FakeGroup] = []
        self._running: list[FakeGroup] = []
        self.cancelled = 0

    def add(
        self, contexts: Sequence[Context], settings: Settings, places: Sequence[Place] | None = None, best: int = 0
    ) -> FakeGroup:
        [context], [place] = contexts, places or [Place(0)]
        if self.refusal is not None:
            raise self.refusal
        self.calls.append((context, settings, place))
        ids, stops = self.script(context, settings, place)
        group = FakeGroup(list(ids), stops, settings.max_new_tokens, best)
        self._waiting.append(group)
        return group

    def cancel(self, group: FakeGroup) -> None:
        self.cancelled += 1
        for groups in (self._waiting, self._running):
            if group in groups:
                groups.remove(group)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def step(self) -> list[FakeGroup]:
        assert self.gate.wait(LIMIT)
        time.sleep(self.pause)
        if self.broken is not None:
            raise self.broken
        while self._waiting and len(self._running) < self._most_rows:
            self._running.append(self._waiting.pop(0))
            self._running[-1].started = True
        changed, self._running = self._running, [group for group in self._running if not self._advance(group)]
        return changed

    def _advance(self, group: FakeGroup) -> bool:
        [reply] = group.replies
        if self.error is not None:
            group.error, group.done = self.error, True
            return True
        at = len(reply.ids)
        if at < min(len(group.script), group.longest):
            reply.ids.append(group.script[at])
        else:
            reply.finish = "stop"
        reply.logprobs.append(-0.5)
        reply.best.append([(id_, -0.5 - id_) for id_ in range(group.best)])
        if reply.finish is None and len(reply.ids) == min(len(group.script), group.longest):
            cut = len(reply.ids) == group.longest or not group.stops
            reply.finish = "length" if cut else None
        group.done = reply.finish is not None
        return group.done


@dataclass
class Running:
    """A server, its engine of each model, and requests to it."""

    port: int
    server: Server
    engines: dict[str, Any]
    key: str | None = None

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> "Answered":
        """A request with a body of JSON, or of bytes as they are, and its whole answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        with contextlib.closing(connection):
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            own = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
            connection.request(method, path, data, {**own, **(headers or {})})
            response = connection.getresponse()
            return Answered(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def post(self, path: str, **body: Any) -> "Answered":
        return self.request("POST", path, body)

    def get(self, path: str) -> "Answered":
        return self.request("GET", path)

    def chat(self, text: str = "你好", **fields: Any) -> "Answered":
        return self.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **fields)

    def gauge(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"hanmo:{name}"))


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error, in exactly the form that clients read."""
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The JSON of every event of a stream, which ends with [DONE]."""
        assert self.headers["content-type"] == "text/event-stream; charset=utf-8"
        found = [part for part in self.body.decode().split("\n\n") if part and not part.startswith(":")]
        assert all(part.startswith("data: ") and "\n" not in part for part in found)
        assert found[-1] == "data: [DONE]"
        return [json.loads(part.removeprefix("data: ")) for part in found[:-1]]


def sent(server: Running, path: str, **body: Any) -> socket.socket:
    """A connection on which a request has been sent, and nothing read."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread brings about."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@contextlib.contextmanager
def running(
    opened: dict[str, OpenedModel],
    engines: dict[str, Any] | None = None,
    settings: Settings | None = None,
    limit: int | None = None,
    queue: int = 256,
    **address: Any,
) -> Iterator[Running]:
    """A server of models by name, which has ended when the block ends."""
    engines = engines or {name: Engine(one, 16) for name, one in opened.items()}
    base = settings or Settings(max_new_tokens=8, do_sample=False)
    served = [Served(name, one, base, limit) for name, one in opened.items()]
    place = Address(port=0, **address)
    with place.listening() as listening:
        server = Server(served, engines, place, queue, "hanmo")
        thread = threading.Thread(target=asyncio.run, args=[server.serve([listening])])
        thread.start()
        try:
            until(lambda: server.started)
            yield Running(listening.getsockname()[1], server, engines, place.key)
        finally:
            for engine in engines.values():
                getattr(engine, "gate", threading.Event()).set()
            server.worker.closing = True
            server.should_exit = True
            thread.join(LIMIT)
            assert not thread.is_alive()


def byte_level_tokenizer(*texts: str) -> PreTrainedTokenizerFast:
    """GPT-2's form: letters that stand for bytes, a few of them merged; ChatML as the template."""
    letters = sorted(bytes_to_unicode().values())
    model = Tokenizer(models.BPE({token: index for index, token in enumerate([*SPECIALS, *letters])}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    made.chat_template = TEMPLATE
    assert all(made.decode(made.encode(text)) == text for text in texts)
    return made


def byte_level_model(folder: Path) -> OpenedModel:
    """A small Qwen3 whose tokens are bytes, so that characters beyond ASCII are several tokens."""
    words = byte_level_tokenizer()
    config = Qwen3Config(vocab_size=len(words), **_SMALL)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return open_model(folder, dtype="fp32", device="cpu")


def says(text: str, opened: OpenedModel, stops: bool = True) -> Script:
    """A script that always replies with a text."""
    ids = opened.family.encode(text)
    return lambda context, settings, place: (ids, stops)
