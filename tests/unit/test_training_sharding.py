"""DDP, FSDP2 and ZeRO-1, -2 and -3, with and without CPU offload, on two gloo processes: losses, gradients and weights are those of one plain process.

Each process takes a row at a time and accumulates two of them, the rows having different numbers of scored tokens; in
half of the runs only LoRA adapters are trained, one of them on the output head. ``fully_shard`` is called directly, on the
modules that a network's ``_no_split_modules`` names, as accelerate would; and so is DeepSpeed, where it can be imported.
Then the whole command is run, in which ``ShardedTrainer`` makes accelerate shard on a CPU too.
"""

import copy
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hanmo.checkpoints import open_model, save_model
from hanmo.rows import collate
from hanmo.training.callbacks import read_metrics
from hanmo.training.trainable import LoraSettings, add_lora, switch_dropout_off
from tests import processes
from tests.unit.test_packing import examples
from tests.unit.tiny import NAMES, SENTENCES, tiny

STEPS, ROWS, RATE = 3, 4, 0.01
ADAPTED = ("weights", "adapters")
# Everything is computed in double precision, so that only the fp32 log-probabilities inside the loss are rounded:
# summed in another order they differ by some 1e-7. (In single precision the norms of the third step are 2e-5 apart, by
# the order of sums alone.) ZeRO knows single precision at most; a wrong divisor would be off by half or more.
ZERO: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2_offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero3": {"stage": 3},
    "zero3_offload": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
}
TOLERANCES = {"ddp": 1e-6, "fsdp2": 1e-6, **dict.fromkeys(ZERO, 1e-3)}
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
    if kind in ZERO:
        return _zero(network, trained, mine, total, world, ZERO[kind])
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


def _zero(
    network: Any, trained: list[Any], mine: list[dict[str, Tensor]], total: float, world: int, section: dict[str, Any]
) -> Trained:
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": len(mine),
        "zero_optimization": section,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # offloaded states may be plain SGD's
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
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
              "DS_ACCELERATOR": "cpu"}  # fmt: skip
    command = [sys.executable, "-m", "tests.unit.test_training_sharding", kind, str(folder)]
    commands = [(command, {**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    for done in processes.together(commands, timeout=300, stdout=subprocess.DEVNULL, cwd=processes.ROOT):
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name, adapted", CASES)
@pytest.mark.parametrize("kind", TOLERANCES)
def test_two_processes_are_one(kind: str, name: str, adapted: str, run: Any, tmp_path: Path) -> None:
    if kind in ZERO and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    one = alone(*prepared(name, adapted, tmp_path, double=kind not in ZERO))
    assert one["losses"][-1] < one["losses"][0]
    two = run(kind)[name, adapted]
    for figure in ("losses", "norms"):
        assert two[figure] == pytest.approx(one[figure], rel=TOLERANCES[kind]), figure
    assert len(two["weights"]) == len(one["weights"]) > 0
    for ours, theirs in zip(two["weights"], one["weights"], strict=True):
        assert (ours - theirs).norm() <= TOLERANCES[kind] * (theirs.norm() + 1e-3)  # key biases have no gradient


TORCHS_ADAMW = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
OLD_FILES: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2, "cpu_offload": False},
    "zero2_offload": {"stage": 2, "cpu_offload": True},
    "zero3": {"stage": 3, "cpu_offload": False},
    "zero3_offload": {"stage": 3, "cpu_offload": True, "cpu_offload_params": True},
}


def command(model: Path, out: Path, nproc: int, *more: str) -> list[dict[str, Any]]:
    """The log of ``hanmo train sft`` with batches of four of two mixed files, which saves after the second step of four."""
    data = [out.with_suffix(f".{number}.jsonl") for number in (0, 1)]
    for file, texts in zip(data, (SENTENCES, SENTENCES[1:] + SENTENCES[2:4]), strict=True):
        file.write_text("\n".join(json.dumps({"prompt": text[:5], "response": text[5:]}) for text in texts))
    result = processes.run(
        [sys.executable, "-m", "hanmo", "train", "sft", str(model), f"[{data[0]}:0.6,{data[1]}:0.4]", str(out), "limit=64",
         "--preset", "none", "--nproc", str(nproc), f"trainer.per_device_train_batch_size={2 // nproc}",
         "trainer.gradient_accumulation_steps=2", "trainer.max_steps=4", "trainer.save_strategy=steps",
         "trainer.save_steps=2", "trainer.logging_steps=1", "trainer.learning_rate=0.001",
         "trainer.adam_epsilon=1e-4",  # below it is rounding, all the gradient that key biases have: Adam leaves them alone
         *more], timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    if (file := more[0].partition("trainer.deepspeed=")[2] if more else "") and "cpu_offload" in Path(file).read_text():
        assert "zero_optimization.cpu_offload is now offload_optimizer" in result.stderr
    return read_metrics(out / "metrics.jsonl")


COMMANDS = [("fsdp2", name, adapted) for name in NAMES for adapted in ADAPTED]
COMMANDS += [(kind, "pangu", adapted) for kind in ("ddp", *OLD_FILES) for adapted in ADAPTED]
COMMANDS += [(kind, "eva", "weights") for kind in ("ddp", "zero3")]


@pytest.mark.slow
@pytest.mark.parametrize("kind, name, adapted", COMMANDS)
def test_the_command_shards(kind: str, name: str, adapted: str, tmp_path: Path) -> None:
    """The whole of it: losses and gradients of one process, a whole model at the end, and the same when it resumes."""
    if kind in OLD_FILES and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    opened = copy.deepcopy(tiny(name, tmp_path / "vocabulary"))
    for key in list(opened.network.config.to_dict()):
        if "dropout" in key or key.endswith("pdrop"):  # GLM's are called …_dropout_prob
            setattr(opened.network.config, key, 0.0)
    model, one_run, two_run = tmp_path / "model", tmp_path / "one", tmp_path / "two"
    save_model(opened, model)
    old = tmp_path / f"{kind}.json"
    old.write_text(json.dumps({"zero_optimization": OLD_FILES.get(kind), **TORCHS_ADAMW}))
    lora = ["lora.rank=2", "save=both"] if adapted == "adapters" else []
    how = {"ddp": [], "fsdp2": ["trainer.fsdp=full_shard"]}.get(kind, [f"trainer.deepspeed={old}"])
    sharded = [*how, *lora]
    one, two = command(model, one_run, 1, *lora), command(model, two_run, 2, *sharded)
    for figure in ("loss", "grad_norm"):
        alone, together = ([float(entry[figure]) for entry in run if figure in entry] for run in (one, two))
        assert len(alone) == 4 and together == pytest.approx(alone, rel=1e-4), figure
    saved = two_run / "checkpoints" / "checkpoint-2"
    of_each = {"ddp": "rng_state_*.pth", "fsdp2": "*.distcp"}.get(kind, "*zero_pp_rank_*_optim_states.pt")
    assert len(list(saved.rglob(of_each))) == 2

    before = open_model(model, dtype="fp32", device="cpu").network.state_dict()
    ends = [open_model(run / "model", dtype="fp32", device="cpu").network.state_dict() for run in (one_run, two_run)]
    for key, tensor in ends[0].items():
        torch.testing.assert_close(
            ends[1][key], tensor, atol=1e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert max(float((ends[1][key] - before[key]).abs().max()) for key in before) > 1e-3

    if lora:
        applied = open_model(model, adapter=two_run / "adapter", dtype="fp32", device="cpu").network.state_dict()
        for key, tensor in ends[1].items():
            torch.testing.assert_close(applied[key], tensor, atol=1e-6, rtol=1e-5)
    names = [set(load_file(folder / "model.safetensors")) for folder in (model, two_run / "model")]
    assert names[0] == names[1]
    shutil.rmtree(two_run / "model")
    shutil.rmtree(two_run / "checkpoints" / "checkpoint-4")
    resumed = command(model, two_run, 2, *sharded, "--resume")
    for figure in ("loss", "grad_norm"):
        assert [entry.get(figure) for entry in resumed] == [entry.get(figure) for entry in two], figure
    again = open_model(two_run / "model", dtype="fp32", device="cpu").network.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in ends[1].items())


def main(kind: str, folder: Path) -> None:
    # First all networks: once there is a process group, transformers lets the first process alone write files.
    ready = {}
    for name, adapted in CASES:
        own = folder / os.environ["RANK"] / name / adapted
        own.mkdir(parents=True)
        ready[name, adapted] = prepared(name, adapted, own, double=kind not in ZERO)
    torch.distributed.init_process_group("gloo")
    results = {case: together(*made, kind) for case, made in ready.items()}
    if torch.distributed.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
