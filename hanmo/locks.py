"""One run at a time where two would overwrite each other: a locked file, which says who holds it.

The system frees the lock when its process ends, however that ends: what a killed run leaves never stands in the way of the
next. On network file systems that pass locks on (NFS with its lock service, Lustre with ``flock``) this holds across
machines; where a file system has no locks, a warning says so and the run goes on unprotected.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from hanmo.errors import InUseError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
SHOWN = 200  # characters of a command

_held: set[int] = set()  # descriptors of this process


@contextmanager
def holding(target: str | Path, lock: Path | None = None) -> Iterator[None]:
    """Be the only run that writes to ``target`` until the block ends. Of torchrun's processes only the main one locks.

    Args:
        lock: the file to lock; default: ``.NAME.lock`` beside the target. It is removed at the end.

    Raises:
        InUseError: another run holds it; says which, where and since when.

    >>> with holding("runs/kdconv"):
    ...     write("runs/kdconv")
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    path = lock or _beside(Path(target))
    descriptor = _locked(path, target)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # while it is held, so that nobody's new lock is removed
            _held.discard(descriptor)
            os.close(descriptor)


@contextmanager
def holding_inside(folder: str | Path) -> Iterator[None]:
    """``holding`` a folder that is written file by file, by a lock inside it; it vanishes again if nothing comes of it."""
    folder = Path(folder)
    fresh = not folder.exists()
    try:
        with holding(folder, folder / ".lock"):
            yield
    finally:
        if fresh:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _beside(target: Path) -> Path:
    """One file for all ways to name a target."""
    target = target.resolve()
    return target.with_name(f".{target.name}.lock")


def _locked(path: Path, target: str | Path) -> int | None:
    """A descriptor of the locked file; None where there are no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.read(descriptor, 4096))
            os.close(descriptor)
            raise InUseError(f"{target}: in use by {holder}; wait until it ends, or give another place") from None
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            if error.errno not in NO_LOCKS:
                raise
            print(f"hanmo: {target}: no locks here ({error.strerror}): start no second run into it", file=sys.stderr)
            return None
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _about_this_process())
            _held.add(descriptor)
            return descriptor
        os.close(descriptor)  # of a run that has just ended and removed it


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _about_this_process() -> bytes:
    about = {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "command": shlex.join(sys.argv)[:SHOWN],
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }
    return json.dumps(about, ensure_ascii=False).encode("utf-8", "replace")


def _holder(said: bytes) -> str:
    try:
        about = json.loads(said)
        text = f"process {about['process']} on {about['machine']} since {about['since']} ({about['command']})"
    except (ValueError, KeyError, TypeError):  # it has not said yet
        return "another process"
    return "".join(character for character in text if character.isprintable())


def _let_go() -> None:
    """A child that was forked must not hold what its parent holds: it may outlive it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
