"""The processes that tests start: they end with the test, and a suite with ignored signals hands none of that down."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import processes

CHILD = "import time; time.sleep(600)"
PARENT = f"""
import subprocess, sys
from pathlib import Path
for own_session in (False, True):
    child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=own_session)
    Path(sys.argv[1]).joinpath(str(child.pid)).touch()
child.wait()
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("ends", ["well", "by a failure", "by a timeout"])
def test_what_a_process_started_ends_with_it(tmp_path: Path, ends: str) -> None:
    def block() -> None:
        with processes.started([sys.executable, "-c", PARENT, str(tmp_path)]) as process:
            processes.wait_until(process, lambda: len(list(tmp_path.iterdir())) == 2)
            if ends == "by a failure":
                raise ZeroDivisionError
            if ends == "by a timeout":
                process.communicate(timeout=0.01)

    if ends == "well":
        block()
    else:
        with pytest.raises((ZeroDivisionError, subprocess.TimeoutExpired)):
            block()
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert len(children) == 2
    for child in children:
        psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=60)
        assert gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_process_ends_with_a_suite_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from tests import processes
with processes.started([sys.executable, "-c", {CHILD!r}]) as process:
    Path(sys.argv[1], str(process.pid)).touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = processes.run([sys.executable, "-c", program, str(tmp_path)], cwd=processes.ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (child,) = (int(path.name) for path in tmp_path.iterdir())
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=60)
    assert gone(child)


def test_ignored_signals_are_not_handed_down() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
        assert processes.run([sys.executable, "-c", code]).stdout == "True\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_test_starts_a_process_in_another_way() -> None:
    this = Path(__file__).resolve()
    found = []
    for path in sorted(this.parents[1].rglob("*.py")):
        if path not in (this, this.parents[1] / "processes.py"):
            text = path.read_text(encoding="utf-8")
            found += [path.name for way in ("subprocess.run(", "subprocess.Popen(", "os.system(") if way in text]
    assert not found, "use tests/processes.py"
