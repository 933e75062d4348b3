"""``hanmo serve`` as a process of its own."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hanmo.checkpoints import save_model
from hanmo.families.base import OpenedModel
from tests import processes

KEY = "sesame"


@dataclass(frozen=True)
class Process:
    """A server: its port, and the id of its process."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def serving(opened: OpenedModel, folder: Path, *options: str) -> Iterator[Process]:
    """A server of a model, with ``KEY``; it must still run when the block ends."""
    save_model(opened, folder / "tiny")
    command = [sys.executable, "-m", "hanmo", "serve", folder / "tiny", "--port", "0", *options]
    environment = {**os.environ, "HANMO_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with log.open("w") as file, processes.started(command, stderr=file, env=environment) as process:
        found = None
        while found is None:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            found = re.search(r"http://127.0.0.1:(\d+)", log.read_text(encoding="utf-8"))
            time.sleep(0.1)
        yield Process(int(found[1]), process.pid)
        assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
