"""Small endpoints: models, tokens, templates, and the state of the server."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import hanmo
from hanmo.rows import Context
from hanmo.serving.api import Api, ignored_header
from hanmo.serving.chat import context_of
from hanmo.serving.errors import ApiError, overloaded
from hanmo.serving.fields import Fields
from hanmo.serving.plan import refuse_unsupported
from hanmo.serving.served import Served

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def models(api: Api, request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_card(served) for served in api.models.values()]})


async def model(api: Api, request: Request) -> Response:
    return JSONResponse(_card(api.named(request.path_params["name"])))


def _card(served: Served) -> dict[str, Any]:
    about = {"id": served.name, "object": "model", "created": served.created, "owned_by": "hanmo"}
    return {**about, "root": served.name, "parent": None, "max_model_len": served.longest, "permission": []}


async def tokenize(api: Api, request: Request) -> Response:
    """The ids that a prompt or messages become, as the other endpoints would read them."""
    fields = await api.fields(request)
    served = api.model(fields)
    names, ids = fields.flag("return_token_strs"), await api.read(_ids, served, fields)
    strings = [served.token_text(id_) for id_ in ids] if names else None
    found = {"count": len(ids), "max_model_len": served.longest, "tokens": ids, "token_strs": strings}
    return JSONResponse(found, headers=ignored_header(fields))


def _ids(served: Served, fields: Fields) -> list[int]:
    special = fields.flag("add_special_tokens", default=True)
    if fields.given("messages"):
        return list(_context(served, fields).ids)
    prompt = fields.text("prompt")
    if prompt is None:
        raise ApiError("expected prompt or messages", "prompt")
    if prompt and prompt == served.special("eos_token"):  # which not every tokenizer finds in a text
        return [served.stop_ids[0]]
    if special:
        return list(served.of_text(prompt).ids)
    return served.family.encode(prompt)


def _context(served: Served, fields: Fields) -> Context:
    refuse_unsupported(fields)
    return context_of(served, fields)


async def detokenize(api: Api, request: Request) -> Response:
    fields = await api.fields(request)
    served = api.model(fields)
    ids = fields.ids("tokens", served.vocabulary)
    if ids is None:
        raise ApiError("expected tokens, a list of token ids", "tokens")
    return JSONResponse({"prompt": served.decode(ids)}, headers=ignored_header(fields))


async def tokenizer_info(api: Api, request: Request) -> Response:
    name = request.query_params.get("model")
    served = api.model(Fields({"model": name}))
    tokens = {role: served.special(role) for role in ("eos_token", "bos_token", "pad_token", "unk_token")}
    template = getattr(served.opened.tokenizer, "chat_template", None)
    about = {"tokenizer_class": type(served.opened.tokenizer).__name__, "model_max_length": served.longest}
    return JSONResponse({**about, **tokens, "chat_template": template if isinstance(template, str) else None})


async def apply_template(api: Api, request: Request) -> Response:
    """What the model reads of messages: the text of its tokens, special ones by name, and their ids."""
    fields = await api.fields(request)
    served = api.model(fields)
    context = await api.read(_context, served, fields)
    prompt = b"".join(served.token_bytes(id_) for id_ in context.ids).decode("utf-8", "replace")
    return JSONResponse({"prompt": prompt, "tokens": list(context.ids)}, headers=ignored_header(fields))


async def health(api: Api, request: Request) -> Response:
    """Empty; 503 once the worker is dead or the server ends. Asks nothing of the worker."""
    if api.worker.dead is not None or api.worker.closing:
        raise overloaded("the server is about to end", "worker_dead" if api.worker.dead else "shutting_down")
    return Response()


async def version(api: Api, request: Request) -> Response:
    return JSONResponse({"version": hanmo.__version__})


async def load(api: Api, request: Request) -> Response:
    return JSONResponse({"server_load": api.worker.running.total() + api.worker.waiting.total()})


async def metrics(api: Api, request: Request) -> Response:
    return Response(api.metrics.page(), media_type=PROMETHEUS)
