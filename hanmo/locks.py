"""Lock files that keep two runs from writing to the same place; each names its holder.

The operating system releases a lock when its process ends in any way, so a killed run never blocks the next one. Locks
hold across machines where a network file system supports them. Where there are no locks, a warning is printed instead.
"""

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
from hanmo.processes import main_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
INSIDE = ".lock"
SHOWN = 200  # most characters of a command in a message

_held: set[int] = set()  # file descriptors of the locks that this process holds


@contextmanager
def holding(target: str | Path, lock: Path | None = None) -> Iterator[None]:
    """Lock ``target`` against other runs until the block ends. Under torchrun only the main process locks.

    ``lock``: the file to lock, which is removed at the end: ``.NAME.lock`` beside the target (the default) or ``.lock``
    inside; each also keeps out runs that want the other. InUseError, which names the holder, if another run holds one.
    """
    if not main_process():
        yield
        return
    place = Path(os.path.realpath(target))  # also resolves circular links, which then cannot be locked
    beside, inside = place.with_name(f".{place.name}.lock"), place / INSIDE
    path = lock or beside
    descriptor = _locked(path, target)
    try:
        _check_free(beside if lock else inside, target)
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # before its release, so that no other run's new lock is removed
            _held.discard(descriptor)
            os.close(descriptor)


@contextmanager
def holding_inside(folder: str | Path) -> Iterator[None]:
    """``holding`` with the lock inside the folder, for writing file by file; a new folder that stays empty is removed."""
    folder = Path(folder)
    fresh = not folder.exists()
    try:
        with holding(folder, folder / INSIDE):
            yield
    finally:
        if fresh:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _locked(path: Path, target: str | Path) -> int | None:
    """Lock the file and return its descriptor; None on a file system without locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = _about_this_process()  # first, as Ctrl-C between making the file and holding it would leave the file behind
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            error.filename = str(target)  # name the target: users do not know the lock file
            raise
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refused = _in_use(descriptor, target)
            os.close(descriptor)
            raise refused from None
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            if error.errno not in NO_LOCKS:
                raise
            print(f"hanmo: {target}: no locks here ({error.strerror}): start no second run into it", file=sys.stderr)
            return None
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, about)
            _held.add(descriptor)
            return descriptor
        os.close(descriptor)  # the file belonged to a run that has just ended and removed it: try again


def _check_free(path: Path, target: str | Path) -> None:
    """Raise InUseError if another run holds this lock file, which need not exist."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(descriptor, target) from None
    except OSError:  # no locks here
        return
    finally:
        os.close(descriptor)


def _in_use(descriptor: int, target: str | Path) -> InUseError:
    holder = "another process"
    with suppress(ValueError, KeyError, TypeError):  # the holder has not written it yet
        about = json.loads(os.read(descriptor, 4096))
        holder = f"process {about['process']} on {about['machine']} since {about['since']} ({about['command']})"
    holder = "".join(filter(str.isprintable, holder))
    return InUseError(f"{target}: in use by {holder}; wait until it ends, or give another place")


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
    return json.dumps(about, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _let_go() -> None:
    """Close the parent's locks in a forked child, which may outlive the parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
