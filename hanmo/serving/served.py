"""A model under the name by which clients ask for it, and the one path from requests to ids."""

from __future__ import annotations

import bisect
import copy
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

from hanmo.errors import HanmoError
from hanmo.families.base import OpenedModel
from hanmo.generation.prompts import as_context
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, Text, json_record
from hanmo.rows import Context, Part
from hanmo.serving.errors import ApiError, api_error

UNLIMITED = 2048  # tokens of a prompt and its reply, for networks without a number of positions
WHOLE = sys.maxsize  # a limit that cuts nothing
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Served:
    """An opened model, its default settings, and ids and texts as clients see them.

    Attributes:
        limit: most tokens of a prompt and its reply together; None: as the network's positions allow.
    """

    def __init__(self, name: str, opened: OpenedModel, settings: Settings, limit: int | None = None):
        self.name, self.opened, self.settings = name, opened, settings
        self.family = opened.family  # encodes in the thread that reads requests
        # Fast tokenizers refuse to be used by two threads at a time: the event loop decodes with one of its own.
        self._decoder = copy.deepcopy(opened.family)
        self.created = int(time.time())
        positions = self.family.positions
        self.limit = limit or (None if positions else UNLIMITED)
        self.longest: int = min(filter(None, (positions, self.limit)))
        rows = int(self.family.config.get_text_config().vocab_size)
        self.vocabulary = min(rows, len(opened.tokenizer))  # rows behind it have no token
        self.stop_ids = self.family.stop_ids  # read here, once: they ask the tokenizer
        self.token_bytes = lru_cache(maxsize=1 << 16)(self._token_bytes)
        # Kept, because a template is rendered several times to learn its form.
        self._with_template = lru_cache(maxsize=16)(lambda given: self.family.with_template(json.loads(given)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, on the event loop."""
        return self._decoder.decode(ids)

    def of_messages(
        self,
        messages: list[dict[str, Any]],
        template: dict[str, Any] | None = None,
        tools: Sequence[dict[str, Any]] = (),
    ) -> Context:
        """The context of a conversation that waits for the assistant, as ``hanmo chat`` builds it, but never cut.

        ``template``: arguments of the chat template. With calls of tools and their results in the conversation, or with
        ``tools`` that may be called, its messages go to the template as they are.
        """
        with self._explained("chat_template_kwargs"):
            family = self._with_template(json.dumps(template, sort_keys=True)) if template else self.family
        self._require_short(sum(len(message["content"]) for message in messages), "messages")
        if tools or any(message["role"] == "tool" or "tool_calls" in message for message in messages):
            self._require_short(len(json.dumps([messages, *tools], ensure_ascii=False)), "tools and messages")
            if messages[-1]["role"] not in ("user", "tool"):
                last = "the last message is neither the user's nor a tool's; expected one that is to be answered"
                raise ApiError(last, "messages")
            with self._explained("tools" if tools else "messages"):
                return self._checked(family.conversation(messages, tools))
        with self._explained("messages"):
            try:
                record = json_record(messages, "", waiting=True)
            except HanmoError:
                raise
            except ValueError as error:
                raise ApiError(str(error), "messages") from None
            assert isinstance(record, Dialogue)
            if record.turns[-1] or messages[-1]["role"] != "user":
                raise ApiError("the last message is not the user's; expected one that is to be answered", "messages")
            return self._checked(family.context(replace(record, turns=record.turns[:-1]), WHOLE))

    def of_text(self, text: str, limit: int | None = None, special: bool = True) -> Context:
        """The context of a prompt as ``hanmo generate`` builds it; without ``special``, of the ids of the text alone."""
        self._require_short(0 if limit else len(text), "prompt")
        with self._explained("prompt"):
            if special:
                return self._checked(as_context(self.opened, Text(text), limit or WHOLE))
            return self.of_ids(self.family.encode(text), limit)

    def of_ids(self, ids: Sequence[int], limit: int | None = None) -> Context:
        """The context of ids as they are."""
        kept = tuple(ids[-limit:] if limit else ids)
        with self._explained("prompt"):
            return self._checked(Context(kept, kept))

    def room(self, context: Context, wanted: int | None, where: str) -> int:
        """Tokens for the reply: ``wanted``, or as many of the model's default as fit. ApiError where they do not."""
        given = len(context.ids)
        if wanted == 0:
            if not self._fits(given, 0):
                raise self._too_long(given, 0, where)
            return 0
        most = self.settings.max_new_tokens if wanted is None else wanted
        room = bisect.bisect_left(range(1, most + 1), True, key=lambda reply: not self._fits(given, reply))
        if room == 0 or (wanted is not None and room < most):
            raise self._too_long(given, most, where)
        return room

    def _fits(self, given: int, reply: int) -> bool:
        within = self.limit is None or given + reply <= self.limit
        return within and self.family.fitting(given, reply) == (given, reply)

    def _too_long(self, given: int, reply: int, where: str) -> ApiError:
        return ApiError(
            f"This model's maximum context length is {self.longest} tokens. However, you requested {given + reply} tokens "
            f"({given} in the {where}, {reply} in the completion). Please reduce the length of the {where} or completion.",
            where,
            "context_length_exceeded",
        )

    def too_long_pair(self, number: int) -> ApiError:
        """The error for a pair of texts to score."""
        return ApiError(
            f"This model's maximum context length is {self.longest} tokens; pair {number} has more, or an empty text.",
            code="context_length_exceeded",
        )

    def _require_short(self, characters: int, where: str) -> None:
        """Refuse what is too long however it is tokenised, so that nobody waits for that."""
        if characters > self.longest * self._widest:
            least = -(-characters // self._widest)
            raise ApiError(
                f"This model's maximum context length is {self.longest} tokens. However, your {where} resulted in at least "
                f"{least} tokens. Please reduce the length of the {where}.",
                where,
                "context_length_exceeded",
            )

    @cached_property
    def _widest(self) -> int:
        """The characters of the longest token."""
        return max(map(len, self.family.tokenizer.get_vocab()))

    def _checked(self, context: Context) -> Context:
        self.family.prompt(context.ids)  # raises for what the network cannot continue
        return context

    @contextmanager
    def _explained(self, param: str) -> Iterator[None]:
        """Name the field that a family refuses, and the model by the name that the client knows."""
        try:
            yield
        except HanmoError as error:
            told = api_error(error, param)
            place = str(getattr(self.family.tokenizer, "name_or_path", ""))
            raise ApiError(told.message.replace(place, self.name) if place else told.message, param) from error

    def is_decoder(self, ids: Sequence[int]) -> bool:
        """Whether each of these ids is predicted from those before it, in one text."""
        try:
            row = self.family.row([Part(tuple(ids[:1]), False), Part(tuple(ids[1:]), True)], stop=False)
        except HanmoError:
            return False
        return row.inputs["input_ids"].tolist() == list(ids)

    # What follows decodes, on the event loop.

    def token_text(self, id_: int) -> str:
        """The text of one token; of a part of a character its bytes, as OpenAI writes them."""
        data = self.token_bytes(id_)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _token_bytes(self, id_: int) -> bytes:
        """The bytes that a token adds to a text; of a token that adds none, its name."""
        token = self._decoder.tokenizer.convert_ids_to_tokens(id_) if id_ < self.vocabulary else None
        if not isinstance(token, str):
            return b""
        if found := _BYTE.fullmatch(token):
            return bytes([int(found[1], 16)])
        text = self.decode([*self._anchor, id_]).removeprefix(self.decode(self._anchor))
        if "\ufffd" in text and all(letter in self._bytes_of_letters for letter in token):
            return bytes(self._bytes_of_letters[letter] for letter in token)
        return (text or token).encode("utf-8")

    @cached_property
    def _anchor(self) -> list[int]:
        """Ids of a text that others are decoded behind, since decoders strip the blank at the beginning."""
        return self._decoder.encode("一")

    @cached_property
    def _bytes_of_letters(self) -> dict[str, int]:
        """The letters by which byte-level tokenizers (GPT-2's) write bytes."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {letter: byte for byte, letter in bytes_to_unicode().items()}

    def special(self, name: str) -> str | None:
        """A special token by its role."""
        if name == "eos_token" and self.stop_ids:
            return str(self._decoder.tokenizer.convert_ids_to_tokens(self.stop_ids[0]))
        token: Any = getattr(self._decoder.tokenizer, name, None)
        return None if token is None else str(token)
