"""Perplexity of texts and responses under any family.

The scored tokens are those that the family would learn: all of a text, or a response after its prompt, and the stop
token. A first token with nothing before it (no prompt, no start token) is not scored, and its characters do not count.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hanmo.errors import HanmoError
from hanmo.evaluation.engine.cache import Progress, Scored, opened_store, score_into
from hanmo.evaluation.results.provenance import computed_by, records_hash, software
from hanmo.evaluation.results.statistics import DRAWS, INTERVAL
from hanmo.families.base import Family, OpenedModel
from hanmo.files import json_text, or_null, write_text
from hanmo.records import Dialogue, Record, ScoredAnswers, Text
from hanmo.rows import IGNORE, Part, Row

WHOLE = 10**9  # a limit that cuts nothing
REMEMBERED = 128  # texts, such as the turns of a dialogue, whose ids are kept


@dataclass(frozen=True)
class RecordScore:
    """The sum over a record's scored tokens of -log p, in nats, and the size of the text they stand for."""

    where: str
    nll: float
    tokens: int
    characters: int  # characters that end in a scored token
    bytes: int  # of these characters in UTF-8
    cut: bool  # the record did not fit


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity per token, and bits per character and byte, which compare across tokenizers. Sums are fp64."""

    nll: float  # sum in nats over ``tokens``
    tokens: int  # the stop token of each row included
    characters: int
    bytes: int
    interval: tuple[float, float]  # 95 % bootstrap interval of the perplexity over records
    left_out: int  # records with nothing to score within the limits
    records: list[RecordScore]
    about: dict[str, Any]

    @property
    def perplexity(self) -> float:
        return _exp(self.nll / self.tokens)

    @property
    def bits_per_character(self) -> float:
        return _bits(self.nll, self.characters)

    @property
    def bits_per_byte(self) -> float:
        return _bits(self.nll, self.bytes)

    def as_dict(self) -> dict[str, Any]:
        """All but the records, for JSON; infinite values are null."""
        measures = ("perplexity", "interval", "bits_per_character", "bits_per_byte")
        sums = ("nll", "tokens", "characters", "bytes")
        return {
            "about": self.about,
            **{name: or_null(getattr(self, name)) for name in (*measures, *sums)},
            "records": len(self.records),
            "left_out": self.left_out,
            "cut": sum(record.cut for record in self.records),
        }

    def write(self, folder: str | Path) -> list[str]:
        """Write results.json and records.jsonl, the score of every record; returns their names."""
        folder = Path(folder)
        lines = (json_text(asdict(record)) for record in self.records)
        write_text(folder / "records.jsonl", "".join(f"{line}\n" for line in lines))
        write_text(folder / "results.json", json_text(self.as_dict(), indent=2) + "\n")
        return ["results.json", "records.jsonl"]


def evaluate(
    opened: OpenedModel,
    records: Sequence[Record],
    limit: int = 512,
    response_limit: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> PerplexityResult:
    """Score all records; HanmoError if none can be scored. ``Family.parts`` explains the limits.

    ``cache``: folder in which scores are saved as they come, so that they are not computed again.
    """
    family = _remembering(opened.family)
    made = [(record.where, *_rows_and_text(family, record, limit, response_limit)) for record in records]
    kept = [one for one in made if one[1]]
    if not kept:
        raise HanmoError(f"none of the {len(records)} records can be scored within {limit} tokens; raise limit")
    inputs = {**computed_by(opened), "data": records_hash(records), "limit": limit, "response_limit": response_limit}
    all_rows = [row for _, rows, _, _ in kept for row in rows]
    with opened_store(cache, "perplexity", [inputs], Scored) as store:
        found = iter(score_into(store, opened, all_rows, batch_size, progress))
    scores = [_record_score(where, [next(found) for _ in rows], text, cut) for where, rows, text, cut in kept]
    about = {"model": opened.source, "protocol": "corrected", "shots": 0, **inputs, **software()}
    return PerplexityResult(
        nll=math.fsum(score.nll for score in scores),
        tokens=sum(score.tokens for score in scores),
        characters=sum(score.characters for score in scores),
        bytes=sum(score.bytes for score in scores),
        interval=bootstrap([score.nll for score in scores], [score.tokens for score in scores]),
        left_out=len(records) - len(kept),
        records=scores,
        about=about,
    )


def bootstrap(nll: Sequence[float], tokens: Sequence[int]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of exp(sum nll / sum tokens) over records."""
    rng = np.random.default_rng(0)
    nll_N, tokens_N = np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    draws = (rng.integers(len(nll_N), size=len(nll_N)) for _ in range(DRAWS))
    low, high = np.quantile([nll_N[drawn].sum() / tokens_N[drawn].sum() for drawn in draws], INTERVAL)
    return _exp(float(low)), _exp(float(high))


def _record_score(where: str, scored: Sequence[tuple[float, int]], text: str, cut: bool) -> RecordScore:
    nll, tokens = sum(nll for nll, _ in scored), sum(tokens for _, tokens in scored)
    return RecordScore(where, nll, tokens, len(text), len(text.encode("utf-8")), cut)


def _remembering(family: Family) -> Family:
    """A copy of the family that tokenises a text once, although a record is made into rows within limits and without."""
    encoded, copied = lru_cache(REMEMBERED)(lambda text: tuple(family.encode(text))), copy(family)
    vars(copied)["encode"] = lambda text: list(encoded(text))
    return copied


def _rows_and_text(
    family: Family, record: Record, limit: int, response_limit: int | None
) -> tuple[list[Row], str, bool]:
    """A record's rows, the text that their scored tokens stand for, and whether it was cut; no rows if none is scored."""
    rows = [family.row(parts) for parts in family.parts(record, limit, response_limit)]
    predicted = _predicted(rows)
    if not predicted:
        return [], "", False
    if predicted == _predicted([family.row(parts) for parts in family.parts(record, WHOLE, WHOLE)]):
        return rows, _scored_text(family, record), False
    return rows, family.decode([id_ for id_ in predicted if id_ not in family.stop_ids]), True


def _scored_text(family: Family, record: Record) -> str:
    """A record's text without the characters at its beginning whose tokens are not scored."""
    text, with_text = _text(record)
    first, *_ = family.parts(record, WHOLE, WHOLE)
    ids = _scored_ids(first)
    scored = len(_predicted([family.row(first)])) - first[-1].scored  # the stop token is not part of the text
    missing = ids[: len(ids) - scored]
    if not missing:
        return text
    if (spelled := family.decode(missing)) and text.startswith(spelled):
        return text[len(spelled) :]
    # The token does not decode to the text's beginning (unknown, normalised or a part of a character): try every length.
    for length in range(1, len(text) + 1):
        rows = family.parts(with_text(text[:length]), WHOLE, WHOLE)
        ids = _scored_ids(rows[0]) if rows else []
        if ids == missing:
            return text[length:]
        if len(ids) > len(missing):
            return text[length - 1 :]
    return ""


def _scored_ids(parts: Sequence[Part]) -> list[int]:
    return [id_ for part in parts if part.scored for id_ in part.ids]


def _predicted(rows: Sequence[Row]) -> list[int]:
    """The scored ids. Rows of one text may overlap in input tokens, never in predicted ones."""
    return [int(label) for row in rows for label in row.labels if label != IGNORE]


def _text(record: Record) -> tuple[str, Callable[[str], Record]]:
    """The text whose tokens are scored, and a function that puts another in its place."""
    if isinstance(record, Text):
        return record.text, lambda text: replace(record, text=text)
    if isinstance(record, Dialogue):
        return record.turns[-1], lambda text: replace(record, turns=(*record.turns[:-1], text), ids=())
    answer = record.best() if isinstance(record, ScoredAnswers) else record
    return answer.response, lambda text: replace(answer, response=text)


def _bits(nats: float, units: int) -> float:
    return nats / math.log(2) / units if units else math.inf


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
