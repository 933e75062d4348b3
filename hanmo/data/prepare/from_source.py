"""From the files of a published source to records, split into train, dev and test."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from hanmo.data.prepare.sources import SOURCES, Source
from hanmo.data.prepare.sources.reader import SourceReader, SourceRecord
from hanmo.data.prepare.splits import SPLITS
from hanmo.errors import ConfigError, HanmoError, unknown
from hanmo.files import json_text, write_text
from hanmo.records import Dialogue, record_writer

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")


@dataclass
class Prepared:
    """Files and number of records of each split, and the number of records left out by reason."""

    source: str
    published: bool
    files: dict[str, str]
    records: dict[str, int]
    dropped: dict[str, int]
    bad: int


def read_source(source: str, place: Path, reader: SourceReader, every_reply: bool = False) -> Iterator[SourceRecord]:
    """The records of a source; ``every_reply``: one for each reply of a dialogue.

    Raises:
        ConfigError: an unknown source.
        RecordError: a bad record, unless ``reader.rejects`` takes it.
    """
    for record, key in _source(source).read(place, reader):
        if every_reply and isinstance(record, Dialogue):
            yield from (SourceRecord(reply, key) for reply in record.replies())
        else:
            yield SourceRecord(record, key)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ConfigError(unknown("source", name, SOURCES))
    return SOURCES[name]


def prepare(
    source: str, place: Path, out: Path, reader: SourceReader, suffix: str = ".jsonl", every_reply: bool = False
) -> Prepared:
    """Write a source's records to ``out``: one file if it is named like one, else a folder with a file per split.

    In a folder, prepared.json keeps the counts, and rejects.jsonl the bad records if ``reader`` collects them.

    Raises:
        ConfigError: an unknown source or suffix, or shares for one file.
        HanmoError: there are no records; nothing is written.
    """
    _source(source)  # a mistyped name leaves no folder behind
    single = any(out.name.endswith(end) for end in SUFFIXES)
    if single and (reader.shares.dev or reader.shares.test):
        raise ConfigError(f"{out}: shares for dev and test need a folder to write to, not one file")
    if suffix not in SUFFIXES:
        raise ConfigError(unknown("suffix", suffix, SUFFIXES))
    paths = {split: out if single else out / f"{split}{suffix}" for split in SPLITS}
    wanted = [split for split in SPLITS if split == "train" or getattr(reader.shares, split)]
    counts = Counter(dict.fromkeys(wanted, 0))
    with ExitStack() as stack:
        writers = {split: stack.enter_context(record_writer(paths[split])) for split in wanted}
        for record, key in read_source(source, place, reader, every_reply):
            split = reader.shares.split(key)
            writers[split](record)
            counts[split] += 1
        if not counts.total():
            left_out = "".join(f"; left out {count:,} x {reason}" for reason, count in reader.dropped.items())
            if reader.rejects:
                left_out += f"; bad: {len(reader.rejects):,}"
            raise HanmoError(f"{place}: no records of the source {source} in it{left_out}; nothing is written")
    bad = len(reader.rejects) if reader.rejects is not None else 0
    files = {split: str(paths[split]) for split in wanted}
    done = Prepared(source, reader.published, files, dict(counts), dict(reader.dropped), bad)
    if not single:
        write_text(out / "prepared.json", json_text(asdict(done), indent=2) + "\n")
        if reader.rejects is not None and bad:
            reader.rejects.write(out / "rejects.jsonl")
    return done
