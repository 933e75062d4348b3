"""Processes a large input block by block in several processes; finished blocks survive interruptions.

The result of a block is a file. Files are read in the order of the blocks, so that neither the number of processes nor
an interruption changes a byte of the output.
"""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from hanmo.files import replacing
from hanmo.locks import holding
from hanmo.records import Plain, Record, Rejects, Text, iter_records

B = TypeVar("B")
Work = Callable[[B, Path], None]  # a block, and the file to write its result to
CHARACTERS = 500_000  # of running text in a block
AHEAD = 2  # blocks in memory for each process


def record_blocks(
    paths: Sequence[Path], size: int, plain: Plain = "dialogue", rejects: Rejects | None = None
) -> Iterator[list[Record]]:
    """The records of files, ``size`` at a time, or fewer where they are long."""
    block: list[Record] = []
    characters = 0
    for path in paths:
        for record in iter_records(path, rejects, plain):
            block.append(record)
            characters += len(record.text) if isinstance(record, Text) else 100
            if len(block) == size or characters >= CHARACTERS:
                yield block
                block, characters = [], 0
    if block:
        yield block


def job_folder(place: Path, job: dict[str, Any], inputs: Iterable[Path]) -> Path:
    """The folder beside ``place`` for the results of a job with these settings and inputs."""
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in inputs if path.is_file()]
    text = json.dumps([job, states], sort_keys=True, default=str)
    return place.with_name(f".{place.name}.{blake2b(text.encode(), digest_size=6).hexdigest()}.blocks")


@contextmanager
def block_job(out: Path, job: dict[str, Any], inputs: Iterable[Path], share: tuple[int, int] | None) -> Iterator[Path]:
    """The results folder of a run that writes ``out``, removed at its end, or of a ``share`` (rank, world) of that run.

    InUseError if another run writes the same.
    """
    with holding(out if share is None else out.with_name(f"{out.name}.{share[0]}-of-{share[1]}")):
        folder = job_folder(out, job, inputs)
        yield folder
        if share is None:
            forget(folder)


def run_blocks(
    blocks: Iterable[B],
    work: Work[B],
    folder: Path,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    share: tuple[int, int] | None = None,
    size: int = 1,
) -> list[Path]:
    """Process all blocks, or for a ``share`` (rank, world) every ``world``-th from ``rank``; the result files in order.

    ``work`` must be picklable for several workers. ``progress`` takes the number of blocks done, times ``size``.
    """

    def report(done: int) -> None:
        if progress:
            progress(done * size)

    folder.mkdir(parents=True, exist_ok=True)
    results: list[Path] = []
    rank, world = share or (0, 1)
    shared = islice(enumerate(blocks), rank, None, world)
    first = list(islice(shared, max(workers, 1)))
    numbered = chain(first, shared)
    workers = min(workers, len(first))  # starting a process costs more than most single blocks
    if workers <= 1:
        for number, block in numbered:
            results.append(folder / f"{number:08d}")
            if not results[-1].exists():
                _do(work, block, results[-1])
            report(len(results))
        return results
    # spawn: a fork of a process that runs threads (torch, tokenizers) may hang
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (work,)) as pool:
        waiting: set[Future[None]] = set()
        for number, block in numbered:
            results.append(folder / f"{number:08d}")
            if results[-1].exists():
                continue
            waiting.add(pool.submit(_do_sent, block, results[-1]))
            if len(waiting) >= AHEAD * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                report(len(results) - len(waiting))
        for future in waiting:
            future.result()
    report(len(results))
    return results


def forget(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _do(work: Work[B], block: B, result: Path) -> None:
    with replacing(result) as temporary:
        work(block, temporary)


_sent: list[Work[Any]] = []  # in a worker process: the work, sent once and not with every block


def _start(work: Work[Any]) -> None:
    _sent[:] = [work]


def _do_sent(block: Any, result: Path) -> None:
    _do(_sent[0], block, result)
