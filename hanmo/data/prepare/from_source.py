"""From the files of a published source to records, split into train, dev and test."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from hanmo.data.prepare.sources import SOURCES
from hanmo.data.prepare.sources.reader import SourceReader
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


def prepare(
    source: str, place: Path, out: Path, reader: SourceReader, suffix: str = ".jsonl", every_reply: bool = False
) -> Prepared:
    """Write a source's records to ``out``: one file if it is named like one, else a folder with a file per split.

    In a folder, prepared.json keeps the counts, and rejects.jsonl the bad records if ``reader`` collects them.
    ``every_reply``: a record for each reply of a dialogue. HanmoError, and nothing is written, if there are no records.
    """
    if source not in SOURCES:
        raise ConfigError(unknown("source", source, SOURCES))
    single = any(out.name.endswith(end) for end in SUFFIXES)
    if single and (reader.shares.dev or reader.shares.test):
        raise ConfigError(f"{out}: shares for dev and test need a folder to write to, not one file")
    if suffix not in SUFFIXES:
        raise ConfigError(unknown("suffix", suffix, SUFFIXES))
    wanted = [split for split in SPLITS if split == "train" or getattr(reader.shares, split)]
    paths = {split: out if single else out / f"{split}{suffix}" for split in wanted}
    counts = Counter(dict.fromkeys(wanted, 0))
    with ExitStack() as stack:
        writers = {split: stack.enter_context(record_writer(path)) for split, path in paths.items()}
        for record, key in SOURCES[source](place, reader):
            split = reader.shares.split(key)
            for part in record.replies() if every_reply and isinstance(record, Dialogue) else [record]:
                writers[split](part)
                counts[split] += 1
        if not counts.total():
            left_out = "".join(f"; left out {count:,} x {reason}" for reason, count in reader.dropped.items())
            if reader.rejects:
                left_out += f"; bad: {len(reader.rejects):,}"
            raise HanmoError(f"{place}: no records of the source {source} in it{left_out}; nothing is written")
    bad = len(reader.rejects) if reader.rejects is not None else 0
    files = {split: str(path) for split, path in paths.items()}
    done = Prepared(source, reader.published, files, dict(counts), dict(reader.dropped), bad)
    if not single:
        write_text(out / "prepared.json", json_text(asdict(done), indent=2) + "\n")
        if reader.rejects is not None and bad:
            reader.rejects.write(out / "rejects.jsonl")
    return done
