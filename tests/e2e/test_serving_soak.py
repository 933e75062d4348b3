"""Hostile random traffic against ``hanmo serve``: it stays up, refuses with a status, crosses no reply, and its memory stays flat.

A minute in the slow suite; ``make soak`` runs it for ten (HANMO_SOAK_SECONDS).
"""

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.served import KEY, serving
from tests.unit.tiny import tiny

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("HANMO_SOAK_SECONDS", "60"))
CLIENTS = 24
WAIT = 120  # seconds for one answer
CROWD = 1000  # requests at once
SLOPE = 10_000  # bytes of anonymous memory that a request may leave behind, on average
TEXTS = ["你好", "今天天气真不错", "明天去哪里玩", "谢谢", "火锅怎么样", "再见我很好", "好吗好吗好吗"]
MALFORMED = (b"{", b"", b"null", b"[]", b'{"messages": ', b"\xff\xfe", b"[" * 5000, b'{"messages": [{"role": "user"}]}')
WRONG: list[dict[str, Any]] = [
    {"temperature": "hot"}, {"max_tokens": -1}, {"n": 10**9}, {"top_p": 7}, {"stop": [1]}, {"seed": 1.5}, {"messages": "你好"},
    {"messages": [{"role": "wizard", "content": "好"}]}, {"logit_bias": {"-4": 1}}, {"model": "another"}, {"stream": "yes"},
    {"tools": [{"type": "function"}]}, {"messages": [{"role": "user", "content": "好" * 100_000}]},
]  # fmt: skip


@dataclass
class Served:
    port: int
    pid: int
    expected: dict[tuple[str, int], str] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def post(self, body: bytes, key: str = KEY) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {key}"})
            response = connection.getresponse()
            return response.status, response.read()

    def anonymous(self) -> int:
        """Bytes of anonymous memory, swapped or not."""
        found = re.findall(r"(?:RssAnon|VmSwap):\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return 1024 * sum(map(int, found))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("soak")
    with serving(tiny("pangu", folder / "vocab"), folder, "--queue", "64", "--cache-gb", "0.05") as process:
        server = Served(process.port, process.pid)
        for text in TEXTS:
            for seed in range(4):
                status, answer = server.post(_request(text, seed))
                assert status == 200, answer
                server.expected[text, seed] = json.loads(answer)["choices"][0]["message"]["content"]
        yield server


def _request(text: str, seed: int, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"messages": messages, "seed": seed, "max_tokens": 12, "temperature": 1.2, **fields}).encode()


def right(server: Served, random: Random) -> None:
    """A request whose reply is known; one that is refused for want of room is tried no further."""
    text, seed = random.choice(TEXTS), random.randrange(4)
    status, answer = server.post(_request(text, seed))
    server.statuses[f"right {status}"] += 1
    if status == 200:
        said = json.loads(answer)["choices"][0]["message"]["content"]
        if said != server.expected[text, seed]:
            server.faults.append(f"{text} {seed}: {said!r} instead of {server.expected[text, seed]!r}")
    elif status not in (429, 503):
        server.faults.append(f"a right request: {status} {answer[:200]!r}")


def streamed(server: Served, random: Random) -> None:
    """A stream that is read to its end, slowly at times, or left in the middle."""
    text, seed, leaves = random.choice(TEXTS), random.randrange(4), random.random() < 0.5
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT)
    with contextlib.closing(connection):
        body = _request(text, seed, stream=True, **({"max_tokens": 100} if leaves else {}))
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        server.statuses[f"stream {response.status}"] += 1
        if response.status != 200:
            return
        if leaves:
            response.read(random.randrange(1, 400))
            return
        lines = []
        while line := response.readline():
            lines.append(line)
            time.sleep(random.choice((0, 0, 0.02)))
    events = [line.removeprefix(b"data: ").strip() for line in lines if line.startswith(b"data: ")]
    choices = [json.loads(event)["choices"] for event in events[:-1]]
    said = "".join(one[0]["delta"].get("content", "") for one in choices)
    if events[-1] != b"[DONE]" or said != server.expected[text, seed]:
        server.faults.append(f"stream {text} {seed}: {said!r} instead of {server.expected[text, seed]!r}")


def wrong(server: Served, random: Random) -> None:
    """What must be refused by 4xx, in the form of an error."""
    if random.random() < 0.2:
        status, answer = server.post(_request("你好", 1), key="guess")
        expected: tuple[int, ...] = (401,)
    elif random.random() < 0.5:
        status, answer = server.post(random.choice(MALFORMED))
        expected = (400,)
    else:
        status, answer = server.post(json.dumps(json.loads(_request("你好", 1)) | random.choice(WRONG)).encode())
        expected = (400, 404)
    server.statuses[f"wrong {status}"] += 1
    if status not in (*expected, 503) or set(json.loads(answer)) != {"error"}:
        server.faults.append(f"a wrong request: {status} {answer[:200]!r}")


def rude(server: Served, random: Random) -> None:
    """Bytes that are no HTTP, or a request that never ends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{"
        connection.sendall(random.choice((b"\x16\x03\x01" * 50, b"GET /" + b"a" * 9000, head)))
        time.sleep(random.choice((0, 0.05)))
    server.statuses["rude"] += 1


KINDS: tuple[Callable[[Served, Random], None], ...] = (right, right, right, streamed, streamed, wrong, rude)


def drive(server: Served, seed: int, until: float) -> None:
    random = Random(seed)
    while time.monotonic() < until:
        kind = random.choice(KINDS)
        try:
            kind(server, random)
        except (OSError, http.client.HTTPException) as error:
            if kind is not rude:
                server.faults.append(f"{kind.__name__}: {type(error).__name__}: {error}")


def together(functions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_hostile_traffic(served: Served) -> None:
    end = time.monotonic() + SECONDS
    marks: list[tuple[int, int]] = []

    def watch() -> None:
        while time.monotonic() < end:
            time.sleep(1)
            marks.append((served.statuses.total(), served.anonymous()))

    together([lambda seed=seed: drive(served, seed, end) for seed in range(CLIENTS)] + [watch])  # type: ignore[misc]
    print(f"\n{dict(served.statuses)}; {served.anonymous() / 2**20:.0f} MB")
    assert not served.faults, served.faults[:5]
    assert (
        served.statuses["right 200"] > 20 and served.statuses["stream 200"] > 10 and served.statuses["wrong 400"] > 10
    )
    half = marks[len(marks) // 3 :]  # after buffers have found their size
    requests, grown = half[-1][0] - half[0][0], half[-1][1] - half[0][1]
    print(f"{grown / max(requests, 1):.0f} bytes a request over {requests}")
    assert requests < 1000 or grown / requests < SLOPE


def test_a_thousand_at_once_are_answered_or_refused(served: Served) -> None:
    """Each by 200 with its own reply, or by 429 or 503; and the server answers as before afterwards."""
    before = dict(served.statuses)
    together([lambda seed=seed: right(served, Random(seed)) for seed in range(CROWD)])  # type: ignore[misc]
    assert not served.faults, served.faults[:5]
    done = {name: count - before.get(name, 0) for name, count in served.statuses.items()}
    assert sum(count for name, count in done.items() if name.startswith("right")) == CROWD
    assert done["right 200"] >= 64
    status, answer = served.post(_request("谢谢", 2))
    assert status == 200
    assert json.loads(answer)["choices"][0]["message"]["content"] == served.expected["谢谢", 2]
