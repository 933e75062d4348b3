"""Starts a run on several machines, and lets one process of each machine read data for the others."""

import atexit
import os
import pickle
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hanmo.errors import ConfigError
from hanmo.files import replacing

T = TypeVar("T")
POLL = 0.2  # seconds


def read_hostfile(path: str | Path) -> dict[str, int]:
    """Machines and how many processes each runs, from a hostfile as DeepSpeed reads it: ``name slots=8`` a line."""
    hosts: dict[str, int] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"(\S+)\s+slots=(0*[1-9]\d*)", text)
        if not found:
            raise ConfigError(f"{path}:{number}: expected 'name slots=8', found {line.strip()!r}")
        if found[1] in hosts:
            raise ConfigError(f"{path}:{number}: {found[1]} is named twice")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise ConfigError(f"{path}: names no machine")
    return hosts


def launch_lines(hosts: Mapping[str, int], arguments: Sequence[str]) -> dict[str, list[str]]:
    """The torchrun command to start on each machine; the first machine is the rendezvous."""
    counts = set(hosts.values())
    if len(counts) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in hosts.items())
        raise ConfigError(f"machines must run the same number of processes: {listed}; give each the smallest")
    first, processes = next(iter(hosts)), counts.pop()
    return {
        name: [
            "torchrun", f"--nnodes={len(hosts)}", f"--node_rank={rank}", f"--nproc_per_node={processes}",
            f"--master_addr={first}", "--master_port=29500", "-m", "hanmo", *arguments,
        ]
        for rank, name in enumerate(hosts)
    }  # fmt: skip


def read_once(name: str, read: Callable[[], T]) -> T:
    """The result of ``read``; one process of each machine calls it, and the others load the result from a file.

    They wait for the file ``name`` outside any collective operation, so that nothing times out. If the reader fails,
    torchrun ends all processes.

    Raises:
        ConfigError: the temporary folder is not this user's alone; other users' pickles could do anything.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return read()
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    group = os.environ.get("GROUP_RANK", "0")  # this machine may be two of the run's nodes
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
    """ConfigError if the folder is not this user's, or if others can write to or read it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{folder}: expected a folder, found a link or a file; remove it")
    if found.st_uid != os.getuid():
        raise ConfigError(f"{folder}: of another user; remove it, or set TMPDIR to a folder of your own")
    if found.st_mode & 0o077:
        raise ConfigError(f"{folder}: open to other users (mode {stat.S_IMODE(found.st_mode):o}); remove it")
