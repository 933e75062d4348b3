"""FSDP2 on two gloo processes: losses, gradients and weights of our networks are those of one process.

accelerate replaces FSDP by plain data parallelism where there is no GPU, so ``fully_shard`` is called directly here, on
the modules that a network's ``_no_split_modules`` names, as accelerate would.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.families.base import collate
from tests.unit.test_packing import examples
from tests.unit.tiny import NAMES, tiny

STEPS = 3


def train(name: str, folder: Path, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """A few steps on four rows, of which every process takes its share."""
    opened = tiny(name, folder)
    network = opened.network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    if world > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (world,))
        for module in network.modules():
            if type(module).__name__ in network._no_split_modules:
                fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)
    rows = [examples(opened).row(place) for place in range(4)]
    total = sum(float(row.weights.sum()) for row in rows)
    batch = collate(rows[rank * 4 // world : (rank + 1) * 4 // world], opened.family.padding)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses, norms = [], []
    for _ in range(STEPS):
        loss = network(**batch, num_items_in_batch=total).loss
        (loss * world).backward()  # gradients are averaged
        whole = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(whole)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1e9)
        norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        losses.append(float(whole))
        optimizer.step()
        optimizer.zero_grad()
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in network.parameters()]
    return {
        "losses": losses,
        "norms": norms,
        "sums": [float(weight.detach().double().square().sum()) for weight in weights],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_with_sharded_weights_are_one(name: str, tmp_path: Path) -> None:
    alone = train(name, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.test_training_sharding", name, str(tmp_path / rank)],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                 "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        together = json.loads(output.splitlines()[-1])
        for figure, values in alone.items():
            assert together[figure] == pytest.approx(values, rel=2e-5), figure
    assert alone["losses"][-1] < alone["losses"][0]


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    print(json.dumps(train(sys.argv[1], Path(sys.argv[2]), rank, world)))
    torch.distributed.destroy_process_group()
