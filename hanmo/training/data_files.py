"""The data files of a run: finds them by name, and reads them into data sets."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from hanmo.data.rows.joined import join
from hanmo.errors import ConfigError
from hanmo.processes import main_process
from hanmo.records import Record, Rejects, iter_records
from hanmo.training.launch import read_once

D = TypeVar("D", bound=Sized)


def find_files(data: str, valid: str | None) -> tuple[Path, Path | None]:
    """Training and validation file of a folder with train.* and valid.* (or dev.*), or of two files."""
    path = Path(data)
    if not path.exists():
        raise ConfigError(f"data: no such file or folder: {path}")
    if path.is_file():
        return path, Path(valid) if valid else None
    train = _only(path, ("train",))
    if train is None:
        raise ConfigError(f"data: {path} has no train.txt or train.jsonl")
    held_out = _only(path, ("valid", "dev"))
    if held_out is not None and not held_out.stat().st_size:  # a split to which no record has fallen
        held_out = None
    return train, Path(valid) if valid else held_out


def _only(folder: Path, stems: tuple[str, ...]) -> Path | None:
    ends = [kind + zipped for kind in (".txt", ".jsonl", ".json") for zipped in ("", ".gz")]
    found = [path for stem in stems for end in ends if (path := folder / f"{stem}{end}").exists()]
    if len(found) > 1:
        raise ConfigError(f"data: {folder} has {' and '.join(path.name for path in found)}; name the file you mean")
    return found[0] if found else None


@dataclass(frozen=True)
class DataFiles:
    """The training and the validation files of a run, of which several are one data set; see ``Mixture``."""

    train: Path | tuple[Path, ...]
    valid: Path | tuple[Path, ...] | None
    skip_bad: bool = False  # bad records are listed in the rejects instead of stopping the run
    bars: bool = True  # show progress, on a terminal
    shares: tuple[float, ...] = ()  # of the training files

    def read(self, make: Callable[[Path, Rejects], D]) -> tuple[D, D | None, Rejects]:
        """The data sets that ``make`` makes from the files; on each machine only one process reads."""

        def both() -> tuple[D, D | None, Rejects]:
            rejects = Rejects(skip_bad=self.skip_bad)
            train, valid = ([make(file, rejects) for file in several(files)] for files in (self.train, self.valid))
            return join(train, self.shares), join(valid) if valid else None, rejects

        return read_once("data", both)

    def records(self, file: Path, rejects: Rejects, **options: Any) -> Iterator[Record]:
        """The records of a file with a progress bar; ``options`` are those of ``iter_records``."""
        records: Iterable[Record] = iter_records(file, rejects if self.skip_bad else None, **options)
        hidden = not (self.bars and main_process() and sys.stderr.isatty())
        return iter(tqdm(records, desc=f"tokenising {file.name}", unit="record", disable=hidden))


def name_files(
    data: str | tuple[str, ...], find: Callable[[str], tuple[Path, Path | None]], skip_bad: bool
) -> DataFiles:
    """The files of a run; ``find`` gives those of one place. A list may name a share after each place: FILE:0.7."""
    places = [(data, None)] if isinstance(data, str) else [_with_share(one) for one in data]
    shares = tuple(share for _, share in places if share is not None)
    if shares and len(shares) < len(places):
        raise ConfigError("data: some files have a share and some have none; write FILE:SHARE for each, or for none")
    if not places:
        raise ConfigError("data: the list names no file")
    train, valid = zip(*(find(place) for place, _ in places), strict=True)
    valid = tuple(dict.fromkeys(file for file in valid if file is not None))
    return DataFiles(train, valid, skip_bad, shares=shares)


def _with_share(entry: str) -> tuple[str, float | None]:
    place, colon, text = entry.rpartition(":")
    if not colon or Path(entry).exists():
        return entry, None
    try:
        share = float(text)
    except ValueError:
        return entry, None
    if not 0 < share < math.inf:
        raise ConfigError(f"data: {entry}: the share of a file must be a number above 0")
    return place, share


def several(files: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    return (files,) if isinstance(files, Path) else files or ()


def require_some(items: Sized, file: Path, what: str, rejects: Rejects) -> None:
    """ConfigError with the first reject's reason if nothing of a file can be used."""
    if not len(items):
        reasons = f"; the first: {rejects.errors[0]}" if rejects else ""
        raise ConfigError(f"{file}: {what}{reasons}")
