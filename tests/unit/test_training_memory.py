"""Memory kept between the steps of a training process."""

import sys

import pytest

from tests import processes

PROGRAM = """
import resource, sys
import torch
from hanmo.nn.cpu.malloc import keep_heap

if sys.argv[1] == "keep" and not keep_heap():
    sys.exit(3)
found = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**26, dtype=torch.uint8).fill_(1)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(found[10:]))  # the heap of older C libraries grows by a few tensors before it fits
"""


def faults(how: str) -> int:
    """Page faults of a tensor of 64 MB that is made and thrown away after ten others: the fewest of ten.

    A kernel that is short of memory takes pages from a process at any time, which is no fault of the heap; pages that are
    given back cost all their faults every time.
    """
    done = processes.run([sys.executable, "-c", PROGRAM, how])
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_tensor_is_made_of_pages_that_an_earlier_one_freed() -> None:
    assert faults("keep") < faults("give back") / 4
