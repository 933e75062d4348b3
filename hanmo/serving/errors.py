"""Errors in the form of OpenAI's API, which clients read: an object with message, type, param and code."""

from __future__ import annotations

from typing import Any

from hanmo.errors import HanmoError, NotANumberError, RecordError, out_of_memory

LONGEST = 1000  # characters of a message: it may quote what the client sent
RETRY = {"Retry-After": "1"}  # seconds; clients wait so long before they try again


class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        param: the field of the request that is wrong.
        code: what programs tell errors apart by.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.message = message if len(message) <= LONGEST else message[:LONGEST] + " …"
        self.param, self.code, self.status, self.headers = param, code, status, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGoneError(Exception):
    """The client has closed its connection, or has not read for too long."""


def api_error(error: Exception, param: str | None = None) -> ApiError:
    """Any exception as what the client is told: a mistake of the request in full, a fault of the server without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HanmoError) and not isinstance(error, NotANumberError):
        return ApiError(error.problem if isinstance(error, RecordError) else str(error), param)
    if out_of_memory(error):
        return overloaded("memory ran out while this was computed; ask for less, or try later", "out_of_memory")
    problem = (
        "the model computes what is not a finite number" if isinstance(error, NotANumberError) else "internal error"
    )
    return ApiError(f"{problem}; the server's log says more", status=500, code="internal_error")


def overloaded(message: str, code: str) -> ApiError:
    return ApiError(message, code=code, status=503, headers=RETRY)
