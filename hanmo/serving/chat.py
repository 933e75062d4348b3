"""``POST /v1/chat/completions``, and the reading of messages for all endpoints that take some."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hanmo.generation.draws import Place
from hanmo.rows import Context
from hanmo.serving.answers import Plan, answered, finish_reason
from hanmo.serving.api import Api, ignored_header
from hanmo.serving.errors import ApiError
from hanmo.serving.fields import Fields, json_object, kind
from hanmo.serving.job import Ask
from hanmo.serving.logprobs import LogprobForms
from hanmo.serving.metrics import Timing
from hanmo.serving.plan import (
    MOST_ALTERNATIVES,
    MOST_TOKENS,
    Options,
    read_options,
    read_settings,
    refuse_unsupported,
    with_length,
)
from hanmo.serving.replies import Piece, Transcript
from hanmo.serving.served import Served

MOST_MESSAGES = 2048
MOST_ARGUMENTS = 16  # of a chat template
DEEPEST = 32  # levels of a tool, and of the arguments of a call
MOST_TOOLS = 128  # that may be called, and calls in a turn
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


async def chat_completions(api: Api, request: Request) -> Response:
    fields = await api.fields(request)
    served = api.model(fields)
    timing = Timing(api.metrics, served.name)
    plan = await api.read(chat_plan, served, fields)
    timing.planned(plan.prompt_tokens, plan.options.choices, plan.asks[0].settings.max_new_tokens)
    return await answered(api.worker, plan, timing, request)


def chat_plan(served: Served, fields: Fields) -> Plan:
    """A request as a plan; in the thread that tokenises."""
    refuse_unsupported(fields)
    for name in fields.given("suffix", "prompt"):
        raise ApiError(f"{name} is a field of /v1/completions; this endpoint takes messages", name)
    if fields.flag("echo"):
        raise ApiError("echo is not supported for messages; /v1/completions has it", "echo")
    options = read_options(fields, _alternatives(fields), served.vocabulary)
    settings = read_settings(fields, served, options)
    limits = [fields.whole(name, 1, MOST_TOKENS) for name in ("max_completion_tokens", "max_tokens")]
    context = context_of(served, fields)
    wanted = next((limit for limit in limits if limit is not None), None)
    settings = with_length(settings, fields, served.room(context, wanted, "messages"))
    asks = [Ask(context, settings, Place(0, choice), options.alternatives or 0) for choice in range(options.choices)]
    form = ChatForm(served, options, context.ids)
    return Plan(served, asks, len(context.ids), options, form, ignored_header(fields))


def _alternatives(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    alternatives = fields.whole("top_logprobs", 0, MOST_ALTERNATIVES)
    if alternatives and not wanted:
        raise ApiError("top_logprobs is only for logprobs=true", "top_logprobs")
    return alternatives or 0 if wanted else None


def context_of(served: Served, fields: Fields) -> Context:
    """The context of the messages, with the tools and the template arguments of a request."""
    return served.of_messages(messages_of(fields), template_of(fields), tools_of(fields))


def messages_of(fields: Fields) -> list[dict[str, Any]]:
    """The messages in transformers' form, each with its text as one string."""
    found = fields.value("messages")
    if not isinstance(found, list) or not 0 < len(found) <= MOST_MESSAGES:
        fields.wrong("messages", f"a list of 1 to {MOST_MESSAGES} messages")
    return [_message(one, f"messages[{place}]") for place, one in enumerate(found)]


def template_of(fields: Fields) -> dict[str, Any] | None:
    """The arguments of the chat template."""
    found = fields.value("chat_template_kwargs")
    if found is not None and (not isinstance(found, dict) or len(found) > MOST_ARGUMENTS):
        fields.wrong("chat_template_kwargs", f"an object of at most {MOST_ARGUMENTS} arguments")
    return found


def tools_of(fields: Fields) -> list[dict[str, Any]]:
    """The tools that the model may call; none if it must not call any."""
    found = fields.value("tools") or []
    if not isinstance(found, list) or len(found) > MOST_TOOLS:
        fields.wrong("tools", f"a list of at most {MOST_TOOLS} tools")
    for number, tool in enumerate(found):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            expected = 'must be {"type": "function", "function": {"name": …}}'
            raise ApiError(f"tools[{number}] {expected}, found {kind(tool)}", "tools")
        _require_shallow(tool, f"tools[{number}]", "tools")
    return [] if fields.value("tool_choice") == "none" else found


def _require_shallow(value: Any, where: str, param: str) -> None:
    """Refuse values that a template would walk for long."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise ApiError(f"{where} is nested too deeply; at most {DEEPEST} levels", param)


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls of tools, with their arguments as objects, which is what templates expect; clients send them as JSON."""
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        raise ApiError(f"{where} must be a list of at most {MOST_TOOLS} calls, found {kind(value)}", "messages")
    calls = []
    for number, call in enumerate(value):
        function = call.get("function") if isinstance(call, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not isinstance(call.get("id"), str | None)
        ):
            expected = 'must be {"id": …, "type": "function", "function": {"name", "arguments"}}'
            raise ApiError(f"{where}[{number}] {expected}", "messages")
        given = {} if function.get("arguments") in (None, "") else function["arguments"]
        place = f"{where}[{number}].function.arguments"
        try:
            read = json_object(given.encode(), place) if isinstance(given, str) else given
        except ApiError as error:
            raise ApiError(error.message, "messages") from None
        if not isinstance(read, dict):
            raise ApiError(f"{place} must be a JSON object, found {kind(given)}", "messages")
        _require_shallow(read, place, "messages")
        calls.append(
            {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": read}}
        )
    return calls


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ApiError(f"{where} must be an object with role and content, found {kind(value)}", "messages")
    role = value.get("role")
    for name in ("function_call", "audio"):
        if value.get(name):
            raise ApiError(f"{where}.{name} is not supported by this server", "messages")
    if not isinstance(role, str) or role not in ROLES:
        shown = repr(role[:40]) if isinstance(role, str) else kind(role)
        raise ApiError(f"{where}.role must be one of {', '.join(ROLES)}, found {shown}", "messages")
    calls = _calls(value["tool_calls"], f"{where}.tool_calls") if value.get("tool_calls") else []
    if calls and role != "assistant":
        raise ApiError(f"{where}.tool_calls: only the assistant calls tools, not the {role}", "messages")
    silent = calls and value.get("content") is None  # a turn that is nothing but calls
    message = {"role": ROLES[role], "content": "" if silent else _content(value.get("content"), f"{where}.content")}
    names = ("tool_call_id", "name") if role == "tool" else ()
    return {
        **message,
        **({"tool_calls": calls} if calls else {}),
        **{name: value[name] for name in names if isinstance(value.get(name), str)},
    }


def _content(value: Any, where: str) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ApiError(f"{where} must be a string or a list of parts, found {kind(value)}", "messages")
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise ApiError(
                f'{where} has a part that is not {{"type": "text", "text": …}}: only text is read', "messages"
            )
        texts.append(text)
    return "".join(texts)


class ChatForm:
    """Choices of chat completions."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, served: Served, options: Options, prompt_ids: tuple[int, ...]):
        self._options, self._prompt_ids = options, prompt_ids
        self._logprobs = LogprobForms(served, options.alternatives or 0, options.tokens_as_ids)

    def opening(self, index: int) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def piece(self, piece: Piece) -> dict[str, Any]:
        return {"delta": {"content": piece.text}, "logprobs": self._told([piece]), "finish_reason": None}

    def ending(self, piece: Piece) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None, **_end(piece)}

    def choice(self, index: int, transcript: Transcript, pieces: list[Piece]) -> dict[str, Any]:
        message = {"role": "assistant", "content": transcript.text, "refusal": None}
        ids = {"token_ids": transcript.ids, "prompt_token_ids": self._prompt_ids} if self._options.ids else {}
        return {"message": message, "logprobs": self._told(pieces), **_end(pieces[-1]), **ids}

    def _told(self, pieces: list[Piece]) -> dict[str, Any] | None:
        if self._options.alternatives is None:
            return None
        return self._logprobs.chat([token for piece in pieces for token in piece.tokens])


def _end(piece: Piece) -> dict[str, Any]:
    return {"finish_reason": finish_reason(piece.finish), "stop_reason": piece.stop}
