"""Tests that run in one process, and again in several that share the model: see tests/parity/test_two_ranks.py."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hanmo.errors import UnsupportedError
from hanmo.nn.tensor_parallel import distributed
from tests import processes

RANKS = int(os.environ.get("WORLD_SIZE", "1"))
ROOT = Path(__file__).resolve().parents[1]


def cut(config: Any) -> dict[str, Any]:
    """Keyword arguments of ``load_network`` for the processes that this test runs in."""
    return distributed(config, RANKS, torch.device("cpu"))


def whole(tensor: Tensor) -> Tensor:
    """A gradient or weight as one process has it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_ranks(ranks: int, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m command`` in several processes of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return processes.run([*launcher, "-m", *command], cwd=ROOT, env=environment, timeout=500, **options)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """As a plugin: a recorded model whose heads do not divide by the ranks is skipped, by all of them."""
    try:
        return (yield)
    except UnsupportedError as error:
        if "every rank holds whole heads" in str(error):
            pytest.skip(str(error))
        raise


def pytest_unconfigure() -> None:
    """As a plugin: the ranks of a test part before they end, since gloo may abort a process that is still a member."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
