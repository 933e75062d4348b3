"""Renders untrusted chat templates with transformers, within limits of memory and time.

Most templates have a form that bounds their output (``is_plain``) and are rendered in this process; the others in a child
process (``rendering.py``), which is started once and killed when a template exceeds the limits.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, TemplateError

from hanmo.errors import CheckpointError, HanmoError, UnsupportedError
from hanmo.families.huggingface import rendering
from hanmo.limits import WAIT

Message = dict[str, str]

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})
READY = b"ready\n"  # the first line that the child writes
_LIMITS = importlib.util.find_spec("resource") is not None  # not on Windows, where this process renders everything
_SCRIPT = Path(rendering.__file__)
_TAGS = {"for", "endfor", "if", "elif", "else", "endif", "set"}
_FILTERS = {"trim", "length", "string"}
_SILENT = {"whitespace", "data", "comment", "comment_begin", "comment_end", "linecomment"}
_KINDS = {"block_begin", "variable_begin", "string"}
_BEFORE_BRACKETS = {"raise_exception", "block_begin", "variable_begin", "if", "elif", "and", "or", "not", "in", "is"}
_BEFORE_BRACKETS |= {"(", "[", "+", "~", "==", "!=", "<", ">", "=", ","}
_SETS, _JOINS, _LONG = 2, 60, 1 << 12  # so that a turn grows to at most a thousand times the template's length
_LOOP = ("messages", "loop", "index", "index0")  # names that a template must not redefine
OPEN, CLOSE = "<think>", "</think>"  # of the reasoning, as nearly all templates write it
_CLOSED = re.compile(rf"\s*{OPEN}\s*{CLOSE}\s*")
_TROUBLES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, SyntaxError)


class TemplateRefusalError(UnsupportedError):
    """A chat template cannot render this conversation; the message is the template's own, or jinja's."""


def render_template(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    add_generation_prompt: bool = False,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> str:
    """A conversation as text; TemplateRefusalError if the template refuses it, CheckpointError beyond the limits.

    ``arguments``: further variables of the template, as ``arguments.py`` has checked them; and ``tools``.
    """
    template, where = tokenizer.get_chat_template(), template_name(tokenizer)
    short = len(str({**tokenizer.special_tokens_map, **arguments})) <= _LONG  # a template may repeat these
    if (short and is_plain(template)) or not _LIMITS:
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt, **arguments}
        try:
            text = str(tokenizer.apply_chat_template(list(messages), **options))
            text.encode("utf-8")  # a template may output a lone surrogate, which no tokenizer accepts
            return text
        except (*_TROUBLES, RecursionError) as error:
            raise TemplateRefusalError(f"{where} does not take this conversation: {error}") from error
    request = {"chat_template": template, "add_generation_prompt": add_generation_prompt}
    given = {**tokenizer.special_tokens_map, **arguments, **request, "conversations": [list(messages)]}
    return str(_answered(given, where, "does not take this conversation")["text"])


def template_name(tokenizer: Any) -> str:
    """The chat template in messages."""
    return f"the chat template of {tokenizer.name_or_path or 'this tokenizer'}"


def template_variables(tokenizer: Any) -> list[str]:
    """The variables that a chat template takes from outside, found in its source; raises as ``render_template``."""
    return list(_variables(tokenizer.get_chat_template(), template_name(tokenizer)))


@functools.lru_cache(maxsize=64)
def _variables(template: str, where: str) -> tuple[str, ...]:
    return tuple(_answered({"chat_template": template}, where, "cannot be read")["variables"])


def _answered(request: dict[str, Any], where: str, problem: str) -> dict[str, Any]:
    """What the renderer answers; its refusals as exceptions."""
    answer = _request(request) if _LIMITS else rendering.answer(request)
    if "limit" in answer:
        raise CheckpointError(f"{where} takes too much {answer['limit']}, which no honest one does; refused")
    if "error" in answer:
        raise TemplateRefusalError(f"{where} {problem}: {answer['error']}")
    return answer


@functools.lru_cache(maxsize=64)
def is_plain(template: str) -> bool:
    """Whether a template's output is bounded: a single loop, over the messages; no calls, no arithmetic, few joins."""
    loops = sets = joins = 0
    last, tag = "", ""
    if len(template) > _LONG:
        return False
    try:
        tokens = [(kind, text) for _, kind, text in Environment().lex(template) if kind not in _SILENT]
    except TemplateError:
        return False
    for place, (kind, text) in enumerate(tokens):
        if last == "block_begin":
            tag = text
            if text not in _TAGS or not _keeps_names(text, tokens[place + 1 : place + 5]):
                return False
            loops += {"for": 1, "endfor": -1}.get(text, 0)
            sets += text == "set"
        if kind == "operator":
            joins += text in ("+", "~")
            called = text == "(" and last not in _BEFORE_BRACKETS
            grows = text in ("*", "**", "/", "//") or (tag == "set" and text in ("+", "~"))
            if called or grows or (text == "%" and last not in ("index", "index0")):
                return False
        if (last == "|" and text not in _FILTERS) or loops > 1:
            return False
        tag = "" if kind == "block_end" else tag
        last = kind if kind in _KINDS else text
    return sets <= _SETS and joins <= _JOINS


def _keeps_names(tag: str, following: list[tuple[str, str]]) -> bool:
    """Whether a loop is over all or some messages, and no tag redefines a name that such loops use."""
    if tag not in ("for", "set"):
        return True
    kinds, texts = zip(*following, strict=True) if following else ((), ())
    over_messages = texts[1:3] == ("in", "messages") and (texts[3:] == ("[",) or kinds[3:] == ("block_end",))
    return texts[:1] > () and texts[0] not in _LOOP and (tag == "set" or over_messages)


@dataclass(frozen=True)
class TemplateForm:
    """Properties of a chat template, found by rendering a few messages."""

    system: bool  # it accepts a system message
    lead: (
        str  # white space that it writes between a prompt and the assistant's text; "" if it writes anything else there
    )
    strips: bool  # it strips the assistant's text
    thought: str = ""  # what closes the block of the reasoning behind a prompt, so that the answer follows

    @classmethod
    def of(cls, render: Callable[[list[Message], bool], str]) -> TemplateForm:
        user = {"role": "user", "content": "甲"}
        try:
            system = "丙丁" in render([{"role": "system", "content": "丙丁"}, user], True)
        except HanmoError:
            system = False
        prompt = render([user], True)
        replied = [render([user, {"role": "assistant", "content": text}], False) for text in ("乙", "  乙  ")]
        rests = [text.removeprefix(prompt) for text in replied]
        lead = rests[0].partition("乙")[0]
        goes_on = replied[0].startswith(prompt)
        thought = lead if goes_on and _CLOSED.fullmatch(lead) else ""
        if prompt.rstrip().endswith(OPEN):  # the template opens the block and leaves the closing to the model
            thought = f"\n\n{CLOSE}\n\n".removeprefix("\n" * prompt.endswith("\n"))
        return cls(system, lead if lead.isspace() and goes_on else "", "  乙  " not in rests[1], thought)

    def messages(self, system: str, turns: list[Message]) -> list[Message]:
        """Messages with the system text: as a message of its own, or before the text of the first user turn."""
        if not system:
            return turns
        if self.system:
            return [{"role": "system", "content": system}, *turns]
        place = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), None)
        if place is None:
            return turns
        remark = "the chat template has no system role: the system text stands before the first turn"
        warnings.warn(remark, stacklevel=2)
        first = {"role": "user", "content": f"{system}\n\n{turns[place]['content']}"}
        return [*turns[:place], first, *turns[place + 1 :]]

    def reply(self, given: str, prefix: str, answer: str) -> tuple[str, str]:
        """The rendered prompt with ``prefix`` (the given beginning of the answer), and the rest of the answer."""
        if prefix:
            return given + self.lead + prefix, answer.rstrip() if self.strips else answer
        answer = answer.strip() if self.strips else answer
        return given, self.lead + answer if answer else ""


@dataclass(frozen=True)
class ToolForm:
    """What a chat template writes of tools, found by rendering a call and its result."""

    described: bool  # the tools that may be called
    called: bool  # calls in the assistant's turns, and their results

    @classmethod
    def of(cls, render: Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]) -> ToolForm:
        """``render``: messages and tools to the prompt."""
        name, given, result = "probe_tool", "甲乙", "丙丁"
        user: dict[str, Any] = {"role": "user", "content": "甲"}
        tool = {
            "type": "function",
            "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}},
        }
        call = {"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": {"text": given}}}
        turns = [
            user,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": result, "tool_call_id": "abcdefghi", "name": name},
        ]

        def written(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
            try:
                return render(messages, tools)
            except TemplateRefusalError:
                return ""

        text = written(turns, [])
        found = name in text and result in text and (given in text or given.encode("unicode_escape").decode() in text)
        return cls(name in written([user], [tool]), found)


class _Renderer:
    """The child process that renders, for one process of hanmo and one request at a time."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            # Isolated, so that no module of the working folder is imported; this process's sys.path is added after Python's.
            [sys.executable, "-I", str(_SCRIPT), *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C reaches this process only, which then ends the child
        )

        if self._line() != READY:
            self.end()
            raise UnsupportedError(
                f"chat templates are rendered in a separate process, which failed to start: {sys.executable} {_SCRIPT}"
            )

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The child's answer; None if it has exited or does not answer in time."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        line = self._line()
        return json.loads(line) if line.endswith(b"\n") else None

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        answers, _, _ = select.select([self.process.stdout], [], [], WAIT)
        return self.process.stdout.readline() if answers else b""

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


_lock = threading.Lock()
_renderer: _Renderer | None = None


def _request(request: dict[str, Any]) -> dict[str, Any]:
    """The renderer's answer. The renderer starts at the first request, and again after a request that killed it."""
    global _renderer
    with _lock:
        if _renderer is None or _renderer.owner != os.getpid():  # a forked process starts a renderer of its own
            _renderer = _Renderer()
        answer = None
        try:
            answer = _renderer.answer(request)
            out_of_time = _renderer.process.poll() in (None, -signal.SIGXCPU)
            return answer or {"limit": "time" if out_of_time else "memory"}
        finally:
            if answer is None:
                _end()


def _end() -> None:
    global _renderer
    if _renderer is not None and _renderer.owner == os.getpid():
        _renderer.end()
    _renderer = None


atexit.register(_end)
