"""Launch lines, hostfiles, old DeepSpeed files, and one process reading for the others."""

import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from hanmo.cli.ranks import without
from hanmo.errors import ConfigError
from hanmo.training.arguments import translate_deepspeed
from hanmo.training.launch import launch_lines, read_hostfile, read_once
from tests import processes


def test_the_processes_of_a_command_are_not_asked_to_start_more() -> None:
    assert without(["a", "--nproc", "2", "b", "--nproc=2", "c"], "--nproc") == ["a", "b", "c"]


def test_a_hostfile(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# ours\nnode-a slots=8\n\nnode-b  slots=8  # the second\n")
    hosts = read_hostfile(file)
    assert hosts == {"node-a": 8, "node-b": 8}
    lines = launch_lines(hosts, ["train", "sft", "m", "d"])
    assert lines["node-b"] == [
        "torchrun",
        "--nnodes=2",
        "--node_rank=1",
        "--nproc_per_node=8",
        "--master_addr=node-a",
        "--master_port=29500",
        "-m",
        "hanmo",
        "train",
        "sft",
        "m",
        "d",
    ]
    for text, message in (
        ("node-a slots=8\nnode-a slots=8", "hosts:2: node-a is named twice"),
        ("node-a", "hosts:1: expected 'name slots=8'"),
        ("node-a slots=0", "hosts:1: expected"),
        ("# none", "names no machine"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_hostfile(file)
    file.write_bytes("机器 slots=8".encode("gbk"))
    with pytest.raises(ConfigError, match="hosts: not UTF-8"):
        read_hostfile(file)
    with pytest.raises(ConfigError, match="a 8, b 4"):
        launch_lines({"a": 8, "b": 4}, [])


@pytest.mark.parametrize(
    "old, new, settings, notices",
    [
        (
            {"zero_optimization": {"stage": 2, "cpu_offload": True, "allgather_size": 5}},
            {
                "zero_optimization": {
                    "stage": 2,
                    "offload_optimizer": {"device": "cpu", "pin_memory": False},
                    "allgather_bucket_size": 5,
                }
            },
            {},
            2,
        ),
        ({"zero_optimization": {"stage": 2, "cpu_offload": False}}, {"zero_optimization": {"stage": 2}}, {}, 1),
        ({"zero_optimization": True}, {"zero_optimization": {"stage": 1}}, {}, 1),
        (
            {
                "zero_optimization": {
                    "stage": 3,
                    "cpu_offload_params": True,
                    "cpu_offload_use_pin_memory": True,
                    "stage3_gather_fp16_weights_on_model_save": True,
                }
            },
            {
                "zero_optimization": {
                    "stage": 3,
                    "offload_param": {"device": "cpu", "pin_memory": True},
                    "stage3_gather_16bit_weights_on_model_save": True,
                }
            },
            {},
            2,
        ),
        (
            {
                "train_batch_size": 64,
                "train_micro_batch_size_per_gpu": 8,
                "gradient_accumulation_steps": 4,
                "gradient_clipping": 1.0,
                "fp16": {"enabled": True, "loss_scale": 0},
            },
            {
                "train_batch_size": "auto",
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
                "fp16": {"enabled": True, "loss_scale": 0},
            },
            {
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 4,
                "max_grad_norm": 1.0,
                "fp16": True,
            },
            4,
        ),
        (
            {"zero_optimization": {"stage": 1, "disable_allgather": True}},
            {"zero_optimization": {"stage": 1}},
            {},
            1,
        ),
    ],
)
def test_old_deepspeed_files(old: dict[str, Any], new: dict[str, Any], settings: dict[str, Any], notices: int) -> None:
    """What a file leaves out is the Trainer's to say, as DeepSpeed's own default would differ."""
    before = repr(old)
    keys = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    new = {**dict.fromkeys(keys, "auto"), **new}
    config, decided, told = translate_deepspeed(old)
    assert (config, decided, len(told)) == (new, settings, notices)
    assert repr(old) == before
    again = translate_deepspeed(config)
    assert again[0] == config and not again[2]


READER = """
import os, sys, time
from pathlib import Path
from hanmo.training.launch import read_once
folder = Path(sys.argv[1])
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
def read():
    (folder / ("read by " + os.environ["LOCAL_RANK"])).touch()
    wait_for("1 has begun")
    return [1, 2, 3]
rank = os.environ["LOCAL_RANK"]
(folder / (rank + " has begun")).touch()
print(sum(read_once("numbers", read)), flush=True)
(folder / (rank + " is done")).touch()
wait_for("1 is done")  # the other takes it before the one that has read goes
"""


def test_one_process_reads_for_the_others(tmp_path: Path) -> None:
    """Process 1 has begun before process 0 is through with reading; what they share is cleared away."""
    shared, seen = tmp_path / "shared", tmp_path / "seen"
    shared.mkdir()
    seen.mkdir()
    environment = {"LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29511", "TMPDIR": str(shared)}
    command = [sys.executable, "-c", READER, str(seen)]
    commands = [(command, {**environment, "LOCAL_RANK": rank}) for rank in ("1", "0")]
    done = processes.together(commands, timeout=120, cwd=processes.ROOT)
    assert [one.stdout for one in done] == ["6\n", "6\n"], [one.stderr for one in done]
    assert [path.name for path in seen.glob("read by *")] == ["read by 0"]
    assert not list(shared.iterdir())


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("fault", "message"), [("open", "open to other users"), ("link", "found a link"), ("other", "of another user")]
)
def test_a_folder_that_others_can_write_to_is_not_read(
    rank: str, fault: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read there is a pickle: whoever can put one there could run anything."""
    for name, value in {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_PORT": "29511"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"hanmo-{os.getuid()}-none-29511-0-0"
    real = tmp_path / "theirs" if fault == "link" else folder
    real.mkdir(mode=0o700)
    (real / "rows.pickle").write_bytes(pickle.dumps("planted"))
    if fault == "link":
        folder.symlink_to(real)
    elif fault == "open":
        folder.chmod(0o770)
    else:
        found = folder.lstat()
        values = [found.st_mode, found.st_ino, found.st_dev, found.st_nlink, found.st_uid + 1, *found[5:]]
        monkeypatch.setattr(Path, "lstat", lambda _: os.stat_result(values))
    with pytest.raises(ConfigError, match=message):
        read_once("rows", lambda: "read")
    assert (real / "rows.pickle").exists()
