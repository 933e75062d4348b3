"""Of two runs that write to one place the second is told who is there; nothing that a run leaves behind locks anyone out."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hanmo.errors import InUseError
from hanmo.locks import holding, holding_inside
from tests import processes

HOLD = """
    import sys
    from pathlib import Path
    from hanmo.locks import holding
    with holding(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None):
        print("held", flush=True)
        sys.stdin.read()
"""


@contextmanager
def holder(target: Path, *lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a place until it is told to end."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(target), *map(str, lock)]
    with processes.started(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=processes.ROOT, env=environment()
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RANK"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_the_second_is_told_who_where_what_and_since_when(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as other:
        message = rf"run: in use by process {other.pid} on {os.uname().nodename} since 2\d+-\d\d-\d\d .* \(-c .*run\)"
        with pytest.raises(InUseError, match=message), holding(tmp_path / "run"):
            pass


def test_other_names_of_the_place_are_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path)
    with holding(tmp_path / "run"):
        for name in ("run", "./run", "link", str(tmp_path / "link" / ".." / "run")):
            with pytest.raises(InUseError), holding(name):
                pass


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_a_run_that_is_over_holds_nothing(tmp_path: Path, how: str) -> None:
    with holder(tmp_path / "run") as other:
        if how == "killed":
            other.send_signal(signal.SIGKILL)
        else:
            assert other.stdin is not None
            other.stdin.close()
        other.wait(60)
        with holding(tmp_path / "run"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_child_that_outlives_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    """Workers that load data are forked, and go on for seconds when their run is killed."""
    program = f"""
        import os, time
        from hanmo.locks import holding
        with holding({str(tmp_path / "run")!r}):
            if not (child := os.fork()):
                os.closerange(0, 3)
                time.sleep(600)
            print(child, flush=True)
            os._exit(9)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with processes.started(command, stdout=subprocess.PIPE, cwd=processes.ROOT, env=environment()) as process:
        assert process.stdout is not None
        child = int(process.stdout.read())  # to its end: the child is through with letting go
        process.wait(60)
        os.kill(child, 0)  # it is there
        with holding(tmp_path / "run"):
            pass


def test_of_the_processes_of_one_run_only_the_main_one_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with holding(tmp_path / "run"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(InUseError), holding(tmp_path / "run"):
            pass


def test_a_file_system_without_locks_is_said_and_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    done = False
    with holding(tmp_path / "run"):
        done = True
    assert done and "no locks here (No locks available): start no second run into it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".run.lock").symlink_to("precious")
    with pytest.raises(OSError), holding(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(("one", "other"), [(holding, holding_inside), (holding_inside, holding)])
def test_a_place_is_not_replaced_while_it_is_written_into_nor_the_reverse(one, other, tmp_path: Path) -> None:
    """``convert --force`` into the folder of a run that trains moved the folder away under it."""
    place = tmp_path / "place"
    place.mkdir()
    with one(place):
        with pytest.raises(InUseError, match="place: in use by process"), other(place):
            pass
        with pytest.raises(InUseError), one(place):
            pass
        with other(place / "model"):  # what a run writes inside its own folder
            pass
    with other(place), one(tmp_path / "else"):
        pass
    assert not list(tmp_path.rglob("*.lock"))
