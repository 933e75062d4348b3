"""The published evaluation of dialogue models: loss and the overlap of one reply per dialogue with a person's.

Values are x 100, except losses and perplexity; texts are compared by characters. Two readings are always computed:

- published: without the last incomplete batch, and with the metrics' published flaws (metrics.py).
- corrected: every sample counts, and the metrics are right.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from hanmo import metrics
from hanmo.errors import HanmoError, UnsupportedError
from hanmo.evaluation.engine.cache import Progress, Scored, Store, opened_store, score_into
from hanmo.evaluation.engine.distributed import shard
from hanmo.evaluation.engine.row_scores import batches
from hanmo.evaluation.results.provenance import computed_by, records_hash, software
from hanmo.evaluation.text_overlap import overlap
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, or_null, write_text
from hanmo.generation.decode import generate
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.nn.row_model import evaluating
from hanmo.records import Dialogue, Record, Text
from hanmo.report.page import Page
from hanmo.rows import Context, Part

Reading = dict[str, float]
PUBLISHED_TABLE = ("loss", "bleu-4", "dist-4", "f1")
TABLE = (*PUBLISHED_TABLE, "dist-3", "rouge-l", "rouge-1", "rouge-2", "perplexity")
SHOWN = 20  # samples on the page
NAMES = {"loss": "loss", "perplexity": "perplexity", "f1": "F1", "bleu": "BLEU", "dist": "Dist", "rouge": "ROUGE"}


@dataclass(frozen=True)
class Sample:
    turns: tuple[str, ...]  # before the reply, as the record has them
    context: str  # the part that the model saw, with special tokens as text
    response: str  # a person's reply, decoded from the model's tokens
    generation: str  # the model's reply
    where: str  # "file:line" of the record
    nll: float  # -log p of the response in nats, summed over ``tokens``
    tokens: int  # of the response, the stop token included


@dataclass(frozen=True)
class DialogueResult:
    """Both readings of an evaluation, by metric."""

    published: Reading  # a missing metric is undefined, for the reason in ``notes``
    corrected: Reading  # also ``token-loss``, the mean over tokens, whose exp is ``perplexity``
    samples: list[Sample]  # in the order of the records
    about: dict[str, Any]  # model, data, hashes, limits, settings, counts
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All but the samples, for JSON."""
        readings = {"published": self.published, "corrected": or_null(self.corrected)}
        return {"about": self.about, **readings, "notes": self.notes}

    def write(self, folder: str | Path) -> list[str]:
        """Write results.json, generations.jsonl and report.html; returns their names."""
        folder = Path(folder)
        lines = (json_text(asdict(sample)) for sample in self.samples)
        write_text(folder / "generations.jsonl", "".join(f"{line}\n" for line in lines))
        write_text(folder / "results.json", json_text(self.as_dict(), indent=2) + "\n")
        self.page().write(folder / "report.html")
        return ["results.json", "generations.jsonl", "report.html"]

    def page(self) -> Page:
        page = Page("Dialogue evaluation", subtitle=str(self.about["model"]), language="zh-CN")
        rows = [["published", *map(self.published.get, TABLE)], ["corrected", *map(self.corrected.get, TABLE)]]
        page.table(["reading", *map(title, TABLE)], rows, caption="Results", note=" ".join(self.notes))
        every = [[title(name), self.published.get(name), value] for name, value in self.corrected.items()]
        with page.details("All metrics"):
            page.table(["metric", "published", "corrected"], every)
        page.heading("How")
        page.facts({name: value for name, value in self.about.items() if name != "settings"})
        page.facts(self.about["settings"], caption="Decoding settings")
        page.heading("Samples")
        for sample in self.samples[:SHOWN]:
            page.dialogue(sample.turns, sample.generation, sample.response, labels=("model", "person"))
        return page


@dataclass(frozen=True)
class _Example:
    sample: Sample  # without reply and score so far
    context: Context
    parts: list[Part]
    place: Place


def evaluate(
    opened: OpenedModel,
    records: Sequence[Record],
    settings: Settings,
    limit: int = 512,
    response_limit: int = 512,
    batch_size: int = 16,
    published: bool = False,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> DialogueResult:
    """Score the last turn of every record and generate the model's own.

    Args:
        limit, response_limit: as in ``Family.parts``; records that do not fit are left out.
        batch_size: affects only the published reading and published decoding.
        published: overrides the field of ``settings``; batches are in the order of the file, score rules see the padded
            row, and the search follows the family's published conventions.
        cache: folder in which scores and replies are saved as they come, so that they are not computed again.

    Raises:
        HanmoError: no record makes an example.
        UnsupportedError: a record is running text; or published, and a reference is empty.
    """
    settings = settings.change(published=published)
    examples = _examples(opened, records, limit, response_limit, published)
    rule_files = opened.family.assets if settings.rule_files else {}
    inputs = {
        **computed_by(opened),
        "data": records_hash(records),
        "protocol": "published" if published else "corrected",
        "shots": 0,
        "batch_size": batch_size,
        "limit": limit,
        "response_limit": response_limit,
        "rule files": sorted(rule_files),
        "settings": asdict(settings),
    }
    rows = [opened.family.row(example.parts) for example in examples]
    with opened_store(cache, "dialogue-scores", [inputs], Scored) as store:
        scores = score_into(store, opened, rows, batch_size)
    contents = [sha256(Path(path).read_bytes()).hexdigest() for path in rule_files.values()]
    with opened_store(cache, "dialogue-replies", [inputs, contents], str) as store:
        _generate(opened, examples, settings, batch_size, store, progress)
        replies = [store.values[number] for number in range(len(examples))]
    samples = [
        replace(example.sample, generation=reply, nll=nll, tokens=tokens)
        for example, reply, (nll, tokens) in zip(examples, replies, scores, strict=True)
    ]
    full = len(samples) // batch_size * batch_size
    reading, notes = published_reading(samples[:full], strict=published)
    counts = {"records": len(records), "samples": len(samples), "samples in the published reading": full}
    about = {"model": opened.source, **inputs, **counts, **software()}
    return DialogueResult(reading, corrected_reading(samples), samples, about, notes)


def title(metric: str) -> str:
    """A metric's name in tables.

    >>> title("bleu-4"), title("rouge-l")
    ('BLEU-4', 'ROUGE-L')
    """
    name, dash, order = metric.partition("-")
    return NAMES.get(name, name) + dash + (order.upper() if len(order) == 1 else order)


def _examples(
    opened: OpenedModel, records: Sequence[Record], limit: int, response_limit: int, published: bool
) -> list[_Example]:
    family, pad_id, examples = opened.family, opened.tokenizer.pad_token_id, []
    for number, record in enumerate(records):
        if isinstance(record, Text):
            raise UnsupportedError(
                f"{record.where or 'a record'}: running text has no response; measure its perplexity"
            )
        line = record.where.rpartition(":")[2]
        number = int(line) - 1 if line.isdecimal() else number  # its number in the file, bad records included
        # The only turn of a dialogue is the context.
        turns = (record.turns[:-1] or record.turns) if isinstance(record, Dialogue) else (record.prompt,)
        for choice, parts in enumerate(family.parts(record, limit, response_limit)):
            ids = tuple(id_ for part in parts if not part.scored for id_ in part.ids)
            target = [id_ for part in parts if part.scored for id_ in part.ids]
            row = family.prompt(ids).inputs["input_ids"].tolist()
            # As published, score rules see the model's input row, filled up to the limit.
            seen = (*row, *[pad_id] * (limit - len(row))) if published else ids
            sample = Sample(turns, family.decode(row), family.decode(target), "", record.where, nll=0.0, tokens=0)
            examples.append(_Example(sample, Context(ids, seen), parts, Place(number, choice)))
    if not examples:
        raise HanmoError(
            f"none of the {len(records)} records makes an example of at most {limit} context and {response_limit} "
            "response tokens; give records of at least two turns, or raise limit and response_limit"
        )
    return examples


def _generate(
    opened: OpenedModel,
    examples: Sequence[_Example],
    settings: Settings,
    batch_size: int,
    store: Store,
    progress: Progress | None,
) -> None:
    """Store a reply to each example. Published decoding depends on its batches, so they keep the order."""
    lengths = [len(example.context.ids) for example in examples]
    groups = batches(lengths, batch_size, in_order=settings.published)
    missing = [chosen for chosen in groups if not store.values.keys() >= set(chosen)]
    done = len(examples) - sum(map(len, missing))
    with evaluating(opened.network):
        for chosen in shard(missing):
            contexts, places = zip(*((examples[index].context, examples[index].place) for index in chosen), strict=True)
            for index, generation in zip(chosen, generate(opened, contexts, settings, places=places), strict=True):
                store.add(index, opened.family.decode(generation.ids))
            done += len(chosen)
            if progress is not None:
                progress(done, len(examples))
    store.complete()


def published_reading(samples: Sequence[Sample], strict: bool) -> tuple[Reading, list[str]]:
    """The reading of full batches, and notes. The original fails on empty references: UnsupportedError if strict."""
    if not samples:
        return {}, ["Published reading: undefined, there is no full batch; make batch_size smaller."]
    replies, references = _texts(samples)
    reading: Reading = {
        # the mean over full batches of a batch's mean is the mean over their samples
        "loss": fmean(sample.nll / sample.tokens for sample in samples),
        **{f"bleu-{k}": 100 * value for k, value in enumerate(metrics.bleu(replies, references), 1)},
        **{f"dist-{k}": 100 * metrics.distinct(replies, k, published=True) for k in range(1, 5)},
        **{f"rouge-{n}": 100 * metrics.rouge_n_published(replies, references, n) for n in (1, 2)},
    }
    empty = next((sample for sample in samples if not sample.response), None)
    if empty is None:
        reading["f1"] = 100 * metrics.unigram_f1(replies, references, published=True)
        reading["rouge-l"] = 100 * metrics.rouge_l(replies, references, published=True)
        return reading, []
    problem = f"{empty.where or 'one record'}: the reference is empty, and the published F1 and ROUGE-L divide by zero"
    if strict:
        raise UnsupportedError(f"{problem}; leave the record out, or evaluate without published")
    return reading, [f"Published reading: {problem}."]


def corrected_reading(samples: Sequence[Sample]) -> Reading:
    token_loss = math.fsum(sample.nll for sample in samples) / sum(sample.tokens for sample in samples)
    return {
        "loss": fmean(sample.nll / sample.tokens for sample in samples),
        "token-loss": token_loss,
        "perplexity": math.exp(token_loss) if token_loss < 700 else math.inf,
        **{name: 100 * value for name, value in overlap(*_texts(samples)).items()},
    }


def _texts(samples: Sequence[Sample]) -> tuple[list[str], list[list[str]]]:
    """Replies, and the only reference of each."""
    return [sample.generation for sample in samples], [[sample.response] for sample in samples]
