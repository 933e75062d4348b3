"""Generated texts against references, line by line."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from hanmo import metrics
from hanmo.data.prepare.sources.reader import text_lines
from hanmo.errors import HanmoError, RecordError
from hanmo.evaluation.results.provenance import software
from hanmo.metrics import Tokens


def read_pairs(hypotheses: str | Path, references: str | Path) -> tuple[list[str], list[list[str]]]:
    """The lines of two files; a line of references may hold several, separated by tabs.

    HanmoError if the files are empty or differ in length; RecordError for a line without a reference.
    """
    texts = [line for _, line in text_lines(Path(hypotheses))]
    expected = [[text for text in line.split("\t") if text] for _, line in text_lines(Path(references))]
    if len(texts) != len(expected):
        raise HanmoError(f"{hypotheses} has {len(texts)} lines, {references} {len(expected)}; expected one for one")
    if not texts:
        raise HanmoError(f"{hypotheses}: no lines; expected a text a line")
    if [] in expected:
        raise RecordError(references, expected.index([]) + 1, "no reference; expected at least one text")
    return texts, expected


def measure(hypotheses: Sequence[str], references: Sequence[Sequence[str]], words: bool = False) -> dict[str, Any]:
    """The metrics of ``overlap`` by characters or jieba's words, and the number of texts."""
    split = _words if words else list
    values = overlap(list(map(split, hypotheses)), [list(map(split, options)) for options in references])
    return {"tokens": "words" if words else "characters", "texts": len(hypotheses), **values}


def overlap(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, float]:
    """All corrected metrics of ``hanmo.metrics`` by name, each from 0 to 1."""
    values = {f"bleu-{order}": value for order, value in enumerate(metrics.bleu(hypotheses, references), 1)}
    values |= {f"dist-{order}": metrics.distinct(hypotheses, order) for order in range(1, 5)}
    values |= {"f1": metrics.unigram_f1(hypotheses, references), "rouge-l": metrics.rouge_l(hypotheses, references)}
    for order in (1, 2):
        recall, f = metrics.rouge_n(hypotheses, references, order)
        values |= {f"rouge-{order}": f, f"rouge-{order}-recall": recall}
    return values


def origin(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, str]:
    """16 hex digits of sha256 over both sides, and the version of hanmo."""
    content = json.dumps([hypotheses, references], ensure_ascii=False).encode()
    return {"data": sha256(content).hexdigest()[:16], **software()}


def _words(text: str) -> list[str]:
    import jieba

    jieba.setLogLevel("WARNING")
    return [word for word in jieba.cut(text) if word.strip()]
