"""Commands that run in several processes; where each computes a part of the model, rank 0 reads and prints for all."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hanmo.errors import ConfigError
from hanmo.processes import main_process

if TYPE_CHECKING:
    from hanmo.generation.settings import Settings

Processes = Annotated[int, typer.Option("--nproc", help="Processes on this machine, e.g. one for each GPU.", min=1)]
TensorParallel = Annotated[
    int | None,
    typer.Option(help="Split the model into N parts, each computed by a process on its own device.", min=1),
]
OPTION = "--tensor-parallel"


def start_processes(count: int) -> NoReturn:
    """Run this command in ``count`` new processes of this machine instead of this one, and exit as they do."""
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks report what failed
    arguments = without(sys.argv[1:], "--nproc")
    parsed = run.parse_args(["--standalone", f"--nproc-per-node={count}", "-m", "hanmo", *arguments])
    try:
        run.run(parsed)
    except ChildFailedError as error:
        sys.exit(max(failure.exitcode for failure in error.failures.values()))
    sys.exit(0)


def without(arguments: list[str], *options: str) -> list[str]:
    """The arguments without some options and their values."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name not in options:
            kept.append(argument)
        elif not equals:
            next(rest, None)
    return kept


def ranks_of_this_run(wanted: int | None) -> int:
    """The number of parts that the model is split into. Outside torchrun, starts this command once for each and exits.

    From here on ranks other than 0 print nothing but a failure's traceback.
    """
    processes = int(os.environ.get("WORLD_SIZE", "0"))
    if wanted is not None and wanted > 1 and not processes:
        start_processes(wanted)
    if wanted is not None and processes and wanted != processes:
        raise ConfigError(f"{OPTION} {wanted}: torchrun has started {processes} processes; both numbers must be equal")
    if not main_process():
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115, for as long as the process lives
        sys.stdout = sys.stderr = nowhere
        sys.excepthook = _report
    return processes or 1


def follow() -> None:
    """Let all ranks read what rank 0 reads from standard input; to be called when the model is open."""
    import torch.distributed as dist

    if dist.is_initialized():
        # A person may take long to type: no timeout, in a separate group, as devices' groups have timeouts.
        sys.stdin = _SharedInput(sys.stdin, dist.new_group(backend="gloo", timeout=timedelta(days=365)))


def agreed(settings: Settings) -> Settings:
    """The settings with one seed for all ranks, if there are several."""
    if settings.seed is not None or not isinstance(sys.stdin, _SharedInput):
        return settings
    import secrets

    return settings.change(seed=sys.stdin.share(secrets.randbits(63)))


class _SharedInput(TextIOBase):
    """Standard input of rank 0, on every rank."""

    def __init__(self, own: Any, group: Any):
        super().__init__()
        self._own, self._group = own, group
        self._terminal = self.share(own.isatty())

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def isatty(self) -> bool:
        return bool(self._terminal)

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        return str(self.share(self._own.readline() if main_process() else None))


def _report(kind: Any, error: Any, trace: Any) -> None:
    import traceback

    print(f"rank {os.environ['RANK']}:", file=sys.__stderr__)
    traceback.print_exception(kind, error, trace, file=sys.__stderr__)
