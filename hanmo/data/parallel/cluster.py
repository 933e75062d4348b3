"""Cleaning and tokenising in many processes or on many machines with the executors of datatrove.

The tasks of a first pipeline share the blocks of the input, a second pipeline writes the result. Tasks need only a
common disk, for logs and marks of completed tasks too; a task that was killed continues when it is started again.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

Job = Callable[..., Any]  # clean or tokenize with all its arguments but ``share``


class _Task(PipelineStep):
    """A share of the blocks, or with ``finish`` the rest of the work."""

    type, name = "hanmo", "blocks"

    def __init__(self, job: Job, finish: bool = False):
        super().__init__()
        self.job, self.finish = job, finish

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        self.job(share=None if self.finish else (rank, world_size))
        yield from ()


def run_local(job: Job, tasks: int, workers: int, logs: Path) -> None:
    """Run the shares, ``workers`` at a time, on this machine; the caller finishes with ``job()``."""
    steps, folder = [_Task(job)], str(logs)
    LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=folder, start_method="spawn").run()


def run_slurm(job: Job, tasks: int, logs: Path, partition: str) -> str:
    """Submit the shares as a job array and a finishing job that depends on it; returns the id of the latter."""

    def jobs(name: str, step: _Task, tasks: int, **options: Any) -> SlurmPipelineExecutor:
        return SlurmPipelineExecutor(
            [step], tasks=tasks, time="20:00:00", partition=partition, cpus_per_task=1, mem_per_cpu_gb=4, qos="",
            job_name=f"hanmo-{name}", logging_dir=str(logs / name),
            env_command=f"export PATH={Path(sys.executable).parent}:$PATH", **options,
        )  # fmt: skip

    shares = jobs("shares", _Task(job), tasks)
    finish = jobs("finish", _Task(job, finish=True), 1, depends=shares)
    finish.run()
    return str(finish.job_id)
