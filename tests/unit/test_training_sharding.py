"""DDP, FSDP2 and ZeRO-3 on two gloo processes: losses, gradients and weights are those of one plain process.

Each process takes a row at a time and accumulates two of them, the rows having different numbers of scored tokens; in
half of the runs only LoRA adapters are trained, one of them on the output head. accelerate replaces FSDP by plain data
parallelism where there is no GPU, so ``fully_shard`` is called directly here, on the modules that a network's
``_no_split_modules`` names, as accelerate would; and so is DeepSpeed, where it can be imported.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hanmo.families.base import collate
from hanmo.training.adapt import LoraSettings, add_lora, switch_dropout_off
from tests.unit.test_packing import examples
from tests.unit.tiny import NAMES, tiny

STEPS, ROWS, RATE = 3, 4, 0.01
ADAPTED = ("weights", "adapters")
# Everything is computed in double precision, so that only the fp32 log-probabilities inside the loss are rounded:
# summed in another order they differ by some 1e-7. (In single precision the norms of the third step are 2e-5 apart, by
# the order of sums alone.) ZeRO knows single precision at most; a wrong divisor would be off by half or more.
TOLERANCES = {"ddp": 1e-6, "fsdp2": 1e-6, "zero3": 1e-3}
Trained = dict[str, list[Any]]


def prepared(name: str, adapted: str, folder: Path, double: bool) -> tuple[Any, list[dict[str, Tensor]], float]:
    """A network, its rows as batches of one, and their weights in all."""
    opened = tiny(name, folder)
    network = copy.deepcopy(opened.network)  # tiny models are shared
    if adapted == "adapters":
        torch.manual_seed(1)
        targets = ["q_proj"] if opened.family.lora_targets == ("all-linear",) else opened.family.lora_targets
        network = add_lora(network, LoraSettings(2), [*targets, "lm_head"])
    switch_dropout_off(network)
    made = examples(opened)
    rows = [made.row(place) for place in range(ROWS)]
    total = sum(float(row.weights.sum()) for row in rows)
    return (
        network.to(torch.double if double else torch.float).train(),
        [collate([r], opened.family.padding) for r in rows],
        total,
    )


def alone(network: Any, batches: list[dict[str, Tensor]], total: float) -> Trained:
    """Plain PyTorch, one process, no accumulation of what is divided."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=RATE)
    losses, norms = [], []
    for _ in range(STEPS):
        loss = sum(network(**batch, num_items_in_batch=total).loss for batch in batches)
        loss.backward()  # type: ignore[union-attr]
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), 1e9)))
        losses.append(float(loss))
        optimizer.step()
        optimizer.zero_grad()
    return {
        "losses": losses,
        "norms": norms,
        "weights": [p.detach().clone() for p in network.parameters() if p.requires_grad],
    }


def together(network: Any, batches: list[dict[str, Tensor]], total: float, kind: str) -> Trained:
    """The same on this process's share of the rows."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = batches[rank * ROWS // world : (rank + 1) * ROWS // world]
    trained = [p for p in network.parameters() if p.requires_grad]
    if kind == "zero3":
        return _zero(network, trained, mine, total, world)
    wrapped = (
        _sharded(network)
        if kind == "fsdp2"
        else nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
    )
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    losses, norms = [], []
    for _ in range(STEPS):
        whole = torch.zeros((), dtype=torch.double)
        for number, batch in enumerate(mine):
            with _unsynchronised(wrapped, kind, number + 1 < len(mine)):
                loss = wrapped(**batch, num_items_in_batch=total).loss
                (loss * world).backward()  # gradients are averaged over the processes
            whole += loss.detach()
        torch.distributed.all_reduce(whole)
        norms.append(float(_whole(nn.utils.clip_grad_norm_(trained, 1e9))))
        losses.append(float(whole))
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "norms": norms, "weights": [_whole(p.detach()).clone() for p in trained]}


def _sharded(network: Any) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in network.modules():
        if type(module).__name__ in network._no_split_modules:
            fully_shard(module, mesh=mesh)
    return fully_shard(network, mesh=mesh)


@contextmanager
def _unsynchronised(wrapped: Any, kind: str, waits: bool) -> Iterator[None]:
    """Between the batches of a step gradients stay where they are, as accelerate does."""
    if kind == "fsdp2":
        wrapped.set_requires_gradient_sync(not waits)
        yield
    elif waits:
        with wrapped.no_sync():
            yield
    else:
        yield


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _zero(network: Any, trained: list[Any], mine: list[dict[str, Tensor]], total: float, world: int) -> Trained:
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": len(mine),
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 1e9,  # its default is not "off"
    }
    engine, *_ = deepspeed.initialize(model=network, optimizer=torch.optim.SGD(trained, lr=RATE), config=settings)
    losses, norms = [], []
    for _ in range(STEPS):
        whole = torch.zeros(())
        for batch in mine:
            loss = engine(**batch, num_items_in_batch=total).loss
            engine.backward(loss * world, scale_wrt_gas=False)  # as transformers calls it
            engine.step()
            whole += loss.detach()
        torch.distributed.all_reduce(whole)
        losses.append(float(whole))
        norms.append(float(engine.get_global_grad_norm()))
    with deepspeed.zero.GatheredParameters(trained):
        weights = [p.detach().clone() for p in trained]
    return {"losses": losses, "norms": norms, "weights": weights}


CASES = [(name, adapted) for name in NAMES for adapted in ADAPTED]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[tuple[str, str], Trained]]:
    """What two processes made of every case, by kind; each kind is run once."""
    found: dict[str, dict[tuple[str, str], Trained]] = {}

    def results(kind: str) -> dict[tuple[str, str], Trained]:
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            _two_processes(kind, folder)
            found[kind] = torch.load(folder / "results.pt", weights_only=True)
        return found[kind]

    return results


def _two_processes(kind: str, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.test_training_sharding", kind, str(folder)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name, adapted", CASES)
@pytest.mark.parametrize("kind", TOLERANCES)
def test_two_processes_are_one(kind: str, name: str, adapted: str, run: Any, tmp_path: Path) -> None:
    if kind == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    one = alone(*prepared(name, adapted, tmp_path, double=kind != "zero3"))
    assert one["losses"][-1] < one["losses"][0]
    two = run(kind)[name, adapted]
    for figure in ("losses", "norms"):
        assert two[figure] == pytest.approx(one[figure], rel=TOLERANCES[kind]), figure
    assert len(two["weights"]) == len(one["weights"]) > 0
    for ours, theirs in zip(two["weights"], one["weights"], strict=True):
        assert (ours - theirs).norm() <= TOLERANCES[kind] * (theirs.norm() + 1e-3)  # key biases have no gradient


def main(kind: str, folder: Path) -> None:
    # First all networks: once there is a process group, transformers lets the first process alone write files.
    ready = {}
    for name, adapted in CASES:
        own = folder / os.environ["RANK"] / name / adapted
        own.mkdir(parents=True)
        ready[name, adapted] = prepared(name, adapted, own, double=kind != "zero3")
    torch.distributed.init_process_group("gloo")
    results = {case: together(*made, kind) for case, made in ready.items()}
    if torch.distributed.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
