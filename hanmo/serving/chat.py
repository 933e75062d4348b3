"""``POST /v1/chat/completions``, and the reading of messages for all endpoints that take some."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hanmo.generation.draws import Place
from hanmo.serving.answers import Plan, answered, finish_reason
from hanmo.serving.api import Api, ignored_header
from hanmo.serving.errors import ApiError
from hanmo.serving.fields import Fields, kind
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
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


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
    context = served.of_messages(messages_of(fields), template_of(fields))
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


def messages_of(fields: Fields) -> list[dict[str, str]]:
    """The messages with their text as one string and the roles that records know."""
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


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ApiError(f"{where} must be an object with role and content, found {kind(value)}", "messages")
    role = value.get("role")
    for name in ("tool_calls", "function_call", "audio"):
        if value.get(name):
            raise ApiError(f"{where}.{name} is not supported by this server", "messages")
    if not isinstance(role, str) or role not in ROLES:
        shown = repr(role[:40]) if isinstance(role, str) else kind(role)
        raise ApiError(f"{where}.role must be one of {', '.join(ROLES)}, found {shown}", "messages")
    return {"role": ROLES[role], "content": _content(value.get("content"), f"{where}.content")}


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
