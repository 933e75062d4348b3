"""Processes that share an evaluation exchange Python objects over gloo, whatever device they compute on."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from hanmo.processes import process_count

T = TypeVar("T")
TIMEOUT = timedelta(days=7)  # for the slowest process: the time that a question takes is unknown


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group, where there is one, and leave it at the end."""
    if process_count() == 1:
        yield
        return
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) outside ``joined``."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own_device(wanted: str | None) -> str | None:
    """The device of this process: a GPU of its own where GPUs are wanted."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if count == 1 or wanted not in (None, "cuda") or not torch.cuda.is_available():
        return wanted
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def shard(items: Sequence[T]) -> list[T]:
    """This process's share: every n-th item; all processes have the same items in the same order."""
    rank, count = rank_and_count()
    return list(items[rank::count])


def broadcast(value: T) -> T:
    """The main process's value."""
    held = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(held, src=0)
    return held[0]


def gather(found: dict[int, T]) -> dict[int, T]:
    """The values of all processes, by number."""
    held = [found]
    if dist.is_initialized():
        held *= dist.get_world_size()
        dist.all_gather_object(held, found)
    return {number: value for part in held for number, value in part.items()}
