"""Several processes and machines: how they are started, and how the main one of each machine reads for the others."""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hanmo.errors import ConfigError
from hanmo.files import replacing

T = TypeVar("T")
POLL = 0.2  # seconds


def read_hostfile(path: str | Path) -> dict[str, int]:
    """Machines and how many processes each runs, from a hostfile as DeepSpeed reads it: ``name slots=8`` a line.

    Raises:
        ConfigError: a line of another form, a machine named twice, no machine.
    """
    hosts: dict[str, int] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        key, _, slots = words[-1].partition("=")
        if len(words) != 2 or key != "slots" or not slots.isdecimal() or not int(slots):
            raise ConfigError(f"{path}:{number}: expected 'name slots=8', found {line.strip()!r}")
        if words[0] in hosts:
            raise ConfigError(f"{path}:{number}: {words[0]} is named twice")
        hosts[words[0]] = int(slots)
    if not hosts:
        raise ConfigError(f"{path}: names no machine")
    return hosts


def launch_lines(hosts: Mapping[str, int], arguments: Sequence[str], port: int = 29500) -> dict[str, list[str]]:
    """For each machine the torchrun command to start there; the first machine is where they meet.

    Raises:
        ConfigError: the machines have different numbers of processes, which torchrun does not start.
    """
    counts = set(hosts.values())
    if len(counts) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in hosts.items())
        raise ConfigError(f"machines must run the same number of processes: {listed}; give each the smallest")
    first, processes = next(iter(hosts)), counts.pop()
    return {
        name: [
            "torchrun", f"--nnodes={len(hosts)}", f"--node_rank={rank}", f"--nproc_per_node={processes}",
            f"--master_addr={first}", f"--master_port={port}", "-m", "hanmo", *arguments,
        ]
        for rank, name in enumerate(hosts)
    }  # fmt: skip


def read_once(name: str, read: Callable[[], T]) -> T:
    """What ``read`` returns; of several processes of a machine one reads and the others take it from a file.

    The others wait for the file, in no collective operation, so that nothing times out however long it takes. If the
    reader fails, whoever started the processes ends them all.

    Args:
        name: of what is read, as a file name.

    Raises:
        ConfigError: the folder for it, in the temporary directory, is not this user's alone: a pickle of somebody
            else's could do anything.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return read()
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    group = os.environ.get("GROUP_RANK", "0")  # two of a run's machines may be this one
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    place = f"hanmo-{os.getuid()}-{run}-{os.environ['MASTER_PORT']}-{group}-{attempt}"
    folder = Path(tempfile.gettempdir()) / place
    path = folder / f"{name}.pickle"
    if os.environ["LOCAL_RANK"] == "0":
        folder.mkdir(mode=0o700, exist_ok=True)
        _require_private(folder)
        path.unlink(missing_ok=True)  # of a run that was killed
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        value = read()
        with replacing(path) as temporary:
            temporary.write_bytes(pickle.dumps(value, protocol=5))
        return value
    while not path.exists():
        time.sleep(POLL)
    _require_private(folder)
    return pickle.loads(path.read_bytes())


def _require_private(folder: Path) -> None:
    """Check that a folder belongs to this user and that no other user can write to or read it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{folder}: expected a folder, found a link or a file; remove it")
    if found.st_uid != os.getuid():
        raise ConfigError(f"{folder}: of another user; remove it, or set TMPDIR to a folder of your own")
    if found.st_mode & 0o077:
        raise ConfigError(f"{folder}: open to other users (mode {stat.S_IMODE(found.st_mode):o}); remove it")


# A DeepSpeed JSON: old key of the zero_optimization section -> its new one
_RENAMED = {
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "allgather_size": "allgather_bucket_size",
}
_DROPPED = ("disable_allgather", "legacy_stage1", "elastic_checkpoint_legacy")
_OURS = {  # what transformers' Trainer has a setting for; both must agree, so ours decides
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}


def translate_deepspeed(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """A DeepSpeed configuration of any age as today's.

    Returns:
        The configuration; settings of the trainer that it decides; a notice for each thing changed.
    """
    config: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    notices, settings = [], {}
    zero = config.get("zero_optimization", {})
    if isinstance(zero, bool):
        zero = config["zero_optimization"] = {"stage": int(zero)}
        notices.append(f"zero_optimization: {str(bool(zero['stage'])).lower()} is now a stage: {zero['stage']}")
    for old, device in (("cpu_offload", "offload_optimizer"), ("cpu_offload_params", "offload_param")):
        if old in zero:
            wanted = zero.pop(old)
            if wanted and device not in zero:
                zero[device] = {"device": "cpu", "pin_memory": bool(zero.get("cpu_offload_use_pin_memory", False))}
            notices.append(f"zero_optimization.{old} is now {device}" + ("" if wanted else ", which is left out"))
    zero.pop("cpu_offload_use_pin_memory", None)
    for old, new in _RENAMED.items():
        if old in zero:
            zero.setdefault(new, zero.pop(old))
            notices.append(f"zero_optimization.{old} is now {new}")
    for old in _DROPPED:
        if old in zero:
            del zero[old]
            notices.append(f"zero_optimization.{old} has no meaning any more and is left out")
    for theirs, ours in _OURS.items():
        config.setdefault(theirs, "auto")  # DeepSpeed's own defaults are none, 1 and no clipping
        if config[theirs] != "auto":
            settings[ours] = config[theirs]
            config[theirs] = "auto"
            notices.append(f"{theirs} is given by trainer.{ours}={settings[ours]}")
    if config.get("train_batch_size", "auto") != "auto":
        config["train_batch_size"] = "auto"
        notices.append("train_batch_size follows from the batch of a process, the accumulation and the processes")
    for precision in ("fp16", "bf16"):
        if (section := config.get(precision)) and section.get("enabled", "auto") != "auto":
            settings[precision] = bool(section["enabled"])
    return config, settings, notices
