"""Results on disk, saved as they come: an interrupted run continues, a finished one is not repeated."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError

import hanmo
from hanmo.evaluation.engine.distributed import broadcast, gather, rank_and_count, shard
from hanmo.evaluation.engine.row_scores import score_rows
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, write_text
from hanmo.locks import holding
from hanmo.processes import main_process
from hanmo.rows import Row

Progress = Callable[[int, int], None]  # done, of how many
Keep = Callable[[int, Any], None]  # place among the missing results, the result
Value = Annotated[float, Field(ge=-1e290, le=1e290)]  # finite, as are sums of them
Scored = tuple[Value, Annotated[int, Field(ge=1, le=1 << 40)]]  # nats and tokens


def cache_folder(stage: str) -> Path | None:
    """The default folder of results, in XDG_CACHE_HOME or ~/.cache; None, with a warning, if nothing can be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hanmo" / stage
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home folder
        if main_process():
            advice = "set a folder with --output or XDG_CACHE_HOME, so that a stopped run can resume"
            print(f"hanmo: answers are not kept ({error}); {advice}", file=sys.stderr)
        return None


def store_file(folder: str | Path, name: str, inputs: Sequence[Any]) -> Path:
    """The file of the results of these inputs, by this version of hanmo."""
    versioned = [*inputs, hanmo.__version__]
    key = sha256(json.dumps(versioned, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]
    return Path(folder) / f"{name}-{key}.jsonl"


class Store:
    """Results by number in an append-only file of JSON lines; its name is a hash of everything they depend on.

    A last line that a crash cut off is dropped, and so is a damaged one, that is, one whose result is not of the type
    ``form``. Each process has its own file; ``complete`` or the next run joins them.
    """

    def __init__(self, folder: str | Path, name: str, inputs: Sequence[Any], form: Any = Any):
        rank, _ = rank_and_count()
        self.path = store_file(folder, name, inputs)
        own = self.path.with_suffix(f".{rank}.jsonl") if rank else self.path
        own.parent.mkdir(parents=True, exist_ok=True)
        self.values: dict[int, Any] = broadcast(self._merge_files(form) if main_process() else {})
        self._file = own.open("a", encoding="utf-8")

    def add(self, number: int, value: Any) -> None:
        self.values[number] = value
        self._file.write(json_text([number, value]) + "\n")
        self._file.flush()

    def fill(
        self, count: int, find: Callable[[list[int], Keep], object], progress: Progress | None = None
    ) -> list[Any]:
        """All results below ``count``; ``find`` gets this process's share of the missing numbers, and keeps results."""
        missing = shard([number for number in range(count) if number not in self.values])
        there = count - len(missing)

        def keep(place: int, value: Any) -> None:
            nonlocal there
            self.add(missing[place], value)
            there += 1
            if progress is not None:
                progress(there, count)

        find(missing, keep)
        self.complete()
        return [self.values[number] for number in range(count)]

    def complete(self) -> None:
        """Share the results of all processes, and join their files."""
        known = self.values
        self.values = gather(known)
        if main_process():
            for number in self.values.keys() - known.keys():
                self.add(number, self.values[number])
            for part in self._parts():
                part.unlink()

    def close(self) -> None:
        self._file.close()

    def _parts(self) -> list[Path]:
        """Files of other processes."""
        return sorted(self.path.parent.glob(f"{self.path.stem}.*.jsonl"))

    def _merge_files(self, form: Any) -> dict[int, Any]:
        """Merge all files into the main one, and return their contents."""
        entry: Any = TypeAdapter(tuple[NonNegativeInt, form])
        found: dict[int, Any] = {}
        parts = self._parts()
        files = [path for path in (self.path, *parts) if path.is_file()]
        for line in (line for path in files for line in path.read_bytes().split(b"\n")[:-1]):
            with suppress(ValidationError):
                number, value = entry.validate_json(line, strict=True)
                found[number] = value
        write_text(self.path, "".join(f"{json_text(one)}\n" for one in found.items()))
        for part in parts:
            part.unlink()
        return found


@contextmanager
def opened_store(folder: str | Path | None, name: str, inputs: Sequence[Any], form: Any) -> Iterator[Store]:
    """A store, deleted at the end if it has no folder; InUseError if another run has the same inputs and folder."""
    with (
        TemporaryDirectory() if folder is None else nullcontext(folder) as place,
        holding(store_file(place, name, inputs)),
        closing(Store(place, name, inputs, form)) as store,
    ):
        yield store


def score_into(
    store: Store, opened: OpenedModel, rows: Sequence[Row], batch_size: int, progress: Progress | None = None
) -> list[tuple[float, int]]:
    """-log p of each row in nats and its number of scored tokens; computed where the store has none."""

    def find(missing: list[int], keep: Keep) -> None:
        chosen = [rows[number] for number in missing]
        score_rows(opened, chosen, batch_size, lambda place, score: keep(place, (score.nll, score.tokens)))

    return store.fill(len(rows), find, progress)
