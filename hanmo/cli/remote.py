"""A conversation with a model that a server has (``hanmo serve``, or any other of OpenAI's API)."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from hanmo.errors import ConfigError, HanmoError, unknown
from hanmo.files import json_text
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, write_records

PATIENCE = 600  # seconds without a byte
LONGEST = 1 << 20  # bytes of an error or of a list of models that are read
# Settings by the name of the request's field. Those that are missing here are the server's alone.
FIELDS = {
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "length_penalty", "repetition_penalty")},
    **{name: name for name in ("presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "num_beams")},
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "do_sample": "temperature",
    "seed": "seed",
}


@dataclass(frozen=True)
class RemoteReply:
    text: str
    finished: bool
    context: None = None  # which only the server has seen


class RemoteSession:
    """A conversation, in the manner of ``generation.chat.ChatSession``. Settings that were not given are the server's.

    Raises:
        HanmoError: the server cannot be reached, or refuses.
    """

    streams = True

    def __init__(self, url: str, key: str | None, model: str | None, settings: Settings, given: set[str], system: str):
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError(f"--url {url}: expected http://HOST:PORT or https://HOST:PORT")
        self._url, self._key = url.rstrip("/").removesuffix("/v1"), key
        self._settings, self._given = settings, given
        self._require_known(given)
        self.system, self.turns = system, list[str]()
        self._earlier: list[Dialogue] = []
        self._random = Random(settings.seed)
        known = [str(card["id"]) for card in self._json("/v1/models")["data"]]
        if model is not None and model not in known:
            raise ConfigError(unknown("model of this server", model, known))
        self.model = model or known[0]

    @property
    def settings(self) -> Settings:
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        before = asdict(self._settings)
        changed = {name for name, value in asdict(settings).items() if value != before[name]}
        self._require_known(changed)
        self._settings, self._given = settings, self._given | changed

    def _require_known(self, names: set[str]) -> None:
        for name in sorted(names - set(FIELDS)):
            raise ConfigError(f"{name} is not sent to a server; give it to hanmo serve")

    def reply(self, text: str, on_text: Callable[[str], None] | None = None) -> RemoteReply:
        """Answer the user, and call ``on_text`` with each piece. Ctrl-C ends the reply where it is."""
        turns = [*self.turns, text]
        roles = ("user", "assistant")
        messages = [{"role": roles[place % 2], "content": turn} for place, turn in enumerate(turns)]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        request = {"model": self.model, "messages": messages, "stream": True, **self._fields()}
        said, finish = "", None
        try:
            for event in self._events("/v1/chat/completions", request):
                for choice in event["choices"]:
                    piece = choice["delta"].get("content") or ""
                    said, finish = said + piece, choice["finish_reason"] or finish
                    if piece and on_text is not None:
                        on_text(piece)
        except KeyboardInterrupt:
            if not said:
                raise
        self.turns += [text, said]
        return RemoteReply(said, finish == "stop")

    def _fields(self) -> dict[str, Any]:
        values = asdict(self._settings)
        fields = {FIELDS[name]: values[name] for name in self._given - {"seed", "do_sample"}}
        if "do_sample" in self._given and not self._settings.do_sample:
            fields["temperature"] = 0
        if self._settings.num_beams > 1:
            fields["use_beam_search"] = True
        else:
            fields.pop("num_beams", None)
        return {**fields, "seed": self._random.getrandbits(63)}

    def clear(self) -> None:
        """Start a new conversation."""
        if self.turns:
            self._earlier.append(Dialogue(tuple(self.turns), self.system))
        self.turns = []

    def reseed(self, seed: int | None) -> None:
        """Start a new conversation with this seed."""
        self._settings = self._settings.change(seed=seed)
        self._random = Random(seed)
        self.clear()

    def save(self, path: str | Path) -> int:
        """Write all conversations of the session as dialogue records; returns their number."""
        current = [Dialogue(tuple(self.turns), self.system)] if self.turns else []
        return write_records(path, [*self._earlier, *current])

    def _events(self, path: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._answer(path, request) as answer:
            for line in answer:
                data = line.strip().removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                event = self._parsed(data)
                if event.get("error"):
                    raise HanmoError(f"{self._url}: {_message(event)}")
                yield event

    def _json(self, path: str) -> dict[str, Any]:
        with self._answer(path) as answer:
            return self._parsed(answer.read(LONGEST))

    def _parsed(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise HanmoError(f"{self._url}: the answer is not one of OpenAI's API; is this the address of hanmo serve?")
        return value

    def _answer(self, path: str, request: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if request is None else json_text(request).encode()
        try:
            return urllib.request.urlopen(urllib.request.Request(self._url + path, data, headers), timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            with error:
                raise HanmoError(f"{self._url}: {_message(self._parsed(error.read(LONGEST)))}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise HanmoError(f"{self._url}: cannot be reached ({reason}); is hanmo serve running there?") from None


def _message(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message", error) if isinstance(error, dict) else error)
