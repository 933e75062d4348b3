"""Replaces folders atomically: a reader sees the old folder or the new one, and a kill at any moment loses neither.

Files that the new folder keeps from the old one are hard-linked into it before anything is renamed:

    NAME            the folder
    .NAME.tmp       the new one while it is written
    .NAME.new       the new one when all of it is on the disk
    .NAME.old       the former one, while the new one is renamed to NAME
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hanmo.errors import CheckpointError
from hanmo.files import system_errors
from hanmo.locks import holding

Keep = Callable[[str], bool]  # whether an entry of this name is kept from the former folder


@contextlib.contextmanager
def new_folder(folder: str | Path, keep: Keep = lambda name: False) -> Iterator[Path]:
    """A draft folder that is renamed to ``folder`` if the block ends without an error, and removed otherwise.

    ``keep``: which entries of an existing folder stay unless the draft has one of that name. CheckpointError if it cannot
    be written, and then nothing has changed; InUseError if another run writes it.
    """
    place = Path(os.path.realpath(folder))  # also resolves circular links
    draft = place.with_name(f".{place.name}.tmp")
    try:
        with holding(folder):
            recover(place)
            try:
                shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
                draft.mkdir(parents=True)
                with system_errors():
                    yield draft
                finish_folder(place, draft, keep)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}; nothing has been changed"
        raise CheckpointError(f"{folder}: {problem}") from error


def finish_folder(folder: Path, draft: Path, keep: Keep) -> None:
    """Flush a draft to disk and give it its real name, see ``new_folder``. The caller holds the folder's lock."""
    for path in filter(Path.is_file, draft.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if not folder.exists():
        draft.rename(folder)
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; give a folder")
    for entry in folder.iterdir():
        if keep(entry.name) and not os.path.lexists(draft / entry.name):
            _link(entry, draft / entry.name)
    new, old = _places(folder)
    draft.rename(new)
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Complete an interrupted replacement, under the folder's lock; CheckpointError if the folder has reappeared."""
    new, old = _places(folder)
    if not os.path.lexists(folder) and old.exists():
        (new if new.exists() else old).rename(folder)
    elif old.exists() and new.exists():
        raise CheckpointError(
            f"{folder}: was put there after its replacement had been interrupted; the former folder is {old}, the new "
            f"one {new}: move the files that you need to {folder.name}, and remove both"
        )
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def recover_missing(folder: Path) -> None:
    """``recover`` a missing folder before it is read; CheckpointError if that fails, InUseError during a replacement."""
    if not folder.name or os.path.lexists(folder):
        return
    new, old = _places(folder)
    if not old.exists():
        return
    try:
        with holding(folder):
            recover(folder)
    except OSError as error:
        if os.path.lexists(folder):
            return  # another process of this run was faster
        there = new if new.exists() else old
        raise CheckpointError(
            f"{folder}: its replacement was interrupted, and it cannot be completed here ({error.strerror}): "
            f"rename {there} to {folder.name}"
        ) from error


def _places(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _link(source: Path, target: Path) -> None:
    """Hard-link an entry to another place, or copy it where the file system has no links."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
