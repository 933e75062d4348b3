"""Tokens with log-probabilities in the two forms of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hanmo.serving.fields import json_float
from hanmo.serving.replies import Token
from hanmo.serving.served import Served


class LogprobForms:
    """Writes tokens of one model with ``alternatives`` of the most likely ones at each place."""

    def __init__(self, served: Served, alternatives: int, as_ids: bool):
        self._served, self._alternatives, self._as_ids = served, alternatives, as_ids

    def chat(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The form of chat completions; ``bytes`` also tells the parts of a character, which have no text."""
        return {"content": [self._with_best(token) for token in tokens], "refusal": None}

    def _with_best(self, token: Token) -> dict[str, Any]:
        assert token.logprob is not None, "a generated token has a log-probability"
        best = [self._entry(*pair) for pair in token.best[: self._alternatives]]
        return {**self._entry(token.id, token.logprob), "top_logprobs": best}

    def _entry(self, id_: int, logprob: float) -> dict[str, Any]:
        data = list(self._served.token_bytes(id_))
        return {"token": self._name(id_), "logprob": json_float(logprob), "bytes": data}

    def completion(self, tokens: Sequence[Token], before: int = 0) -> dict[str, Any]:
        """The form of completions; ``before``: characters of the text before the first token's."""
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [None if one.logprob is None else json_float(one.logprob) for one in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": [before + token.offset for token in tokens],
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The most likely tokens and the one that stands there, the likelier of two with the same text."""
        if token.logprob is None:
            return None
        found: dict[str, float] = {}
        for id_, logprob in [*token.best[: self._alternatives], (token.id, token.logprob)]:
            found.setdefault(self._name(id_), json_float(logprob))
        return found

    def _name(self, id_: int) -> str:
        return f"token_id:{id_}" if self._as_ids else self._served.token_text(id_)
