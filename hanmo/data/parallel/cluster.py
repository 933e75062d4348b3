"""Cleaning and tokenising in many processes or on many machines with the executors of datatrove.

The tasks of a first pipeline share the blocks of the input, a second pipeline writes the result. Tasks need only a
common disk; a task that was killed continues when it is started again. The result is byte for byte that of one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

Job = Callable[..., Any]  # clean or tokenize with all its arguments but ``share``


class _Task(PipelineStep):
    """A task's share of the blocks, or with ``finish`` what follows all shares: remaining blocks, duplicates, files."""

    type = "hanmo"
    name = "blocks"

    def __init__(self, job: Job, finish: bool = False):
        super().__init__()
        self.job, self.finish = job, finish

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if self.finish:
            self.job()
        else:
            self.job(share=(rank, world_size))
        yield from ()


def run_local(job: Job, tasks: int, workers: int, logs: Path) -> None:
    """Run the shares with datatrove's local executor; the caller finishes with ``job()``.

    Args:
        tasks: shares; ``workers`` of them run at a time.
        logs: folder of datatrove's logs and marks of completed tasks.
    """
    shares = LocalPipelineExecutor(
        [_Task(job)], tasks=tasks, workers=workers, logging_dir=str(logs), start_method="spawn"
    )
    shares.run()


@dataclass(frozen=True)
class Slurm:
    """Settings of a Slurm job; ``time`` as Slurm writes it, e.g. 20:00:00."""

    partition: str
    time: str = "20:00:00"
    cpus: int = 1
    gigabytes: int = 4  # of memory for each processor
    at_once: int = -1  # tasks that run at the same time; -1: as many as Slurm likes


def run_slurm(job: Job, tasks: int, logs: Path, slurm: Slurm) -> str:
    """Submit the shares as a job array and a finishing job that depends on it; returns the id of the latter.

    The submitted scripts are in ``logs``: shares/launch_script.slurm and finish/launch_script.slurm.
    """
    common = {
        "time": slurm.time,
        "partition": slurm.partition,
        "cpus_per_task": slurm.cpus,
        "mem_per_cpu_gb": slurm.gigabytes,
        "qos": "",
        "env_command": f"export PATH={Path(sys.executable).parent}:$PATH",
    }
    shares = SlurmPipelineExecutor(
        [_Task(job)],
        tasks=tasks,
        workers=slurm.at_once,
        job_name="hanmo-shares",
        logging_dir=str(logs / "shares"),
        **common,
    )
    finish = SlurmPipelineExecutor(
        [_Task(job, finish=True)],
        tasks=1,
        job_name="hanmo-finish",
        logging_dir=str(logs / "finish"),
        depends=shares,
        **common,
    )
    finish.run()
    return str(finish.job_id)
