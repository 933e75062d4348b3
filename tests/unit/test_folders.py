"""Folders are written whole or not at all, and a kill at any moment loses nothing of the user's."""

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanmo.errors import CheckpointError
from hanmo.folders import new_folder, recover_missing
from tests import processes

OLD = {"weights": "old", "config": "old", "notes.txt": "the user's", "photos/2024/a.jpg": "a picture", "link": "a link"}
NEW = {"weights": "new", "config": "new"}
# Ends without a word before the call number STOP of those that change names in a file system.
REPLACE = """
    import os, sys
    from pathlib import Path
    from hanmo.folders import new_folder

    calls, stop = 0, int(sys.argv[2])
    def kill(event, arguments):
        global calls
        if event in ("os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            calls += 1
            if calls == stop:
                os._exit(9)
    sys.addaudithook(kill)
    with new_folder(sys.argv[1], keep=lambda name: name != "gone") as draft:
        (draft / "weights").write_text("new")
        (draft / "config").write_text("new")
"""


def make(folder: Path) -> None:
    for name, text in OLD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "link":
            (folder / name).symlink_to("notes.txt")
        else:
            (folder / name).write_text(text)
    (folder / "gone").write_text("not to be kept")


def content(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() or file.is_symlink())
    return {str(f.relative_to(folder)): "a link" if f.is_symlink() else f.read_text() for f in files}


def replace(folder: Path, stop: int = 0) -> int:
    command = [sys.executable, "-c", textwrap.dedent(REPLACE), str(folder), str(stop)]
    return processes.run(command, cwd=processes.ROOT).returncode


def killed(tmp_path: Path) -> Iterator[Path]:
    """Folders whose replacement was killed before its first call that changes names, its second, and so on to the last."""
    for stop in range(1, 100):
        folder = tmp_path / str(stop) / "model"
        make(folder)
        if replace(folder, stop) == 0:
            assert stop > 15, "the calls are not seen any more"
            return
        yield folder
    raise AssertionError("it never came to its end")


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder_to_who_opens_it(tmp_path: Path) -> None:
    whole_old, whole_new = {**OLD, "gone": "not to be kept"}, {**OLD, **NEW}
    seen = set()
    for folder in killed(tmp_path):
        recover_missing(folder)
        found = content(folder)
        assert found in (whole_old, whole_new), folder
        seen.add(found["weights"])
    assert seen == {"old", "new"}


def test_after_a_kill_at_any_moment_the_next_run_completes_it_and_clears_up(tmp_path: Path) -> None:
    for folder in killed(tmp_path):
        assert replace(folder) == 0
        assert content(folder) == {**OLD, **NEW}, folder
        assert [item.name for item in folder.parent.iterdir()] == ["model"], folder


def interrupted(tmp_path: Path) -> Path:
    """The moment between the two renames: the former folder is away, the new one not yet in its place."""
    folder = tmp_path / "model"
    make(tmp_path / ".model.old")
    make(tmp_path / ".model.new")
    (tmp_path / ".model.new" / "weights").write_text("new")
    return folder


def test_what_was_put_there_since_is_not_overwritten(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    folder.mkdir()
    (folder / "mine").write_text("precious")
    with (
        pytest.raises(
            CheckpointError, match=r"was put there after .* the former folder is .*\.model\.old, the new one"
        ),
        new_folder(folder),
    ):
        pass
    assert content(folder) == {"mine": "precious"}
    assert content(tmp_path / ".model.old")["notes.txt"] == "the user's"


def test_where_it_cannot_be_completed_the_message_says_what_to_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    folder = interrupted(tmp_path)
    monkeypatch.setattr(Path, "rename", refuse)
    message = r"cannot be completed here \(Read-only file system\): rename .*/\.model\.new to model"
    with pytest.raises(CheckpointError, match=message):
        recover_missing(folder)


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    make(tmp_path / "disk" / "model")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    with new_folder(tmp_path / "model", keep=lambda name: name == "notes.txt") as draft:
        (draft / "weights").write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert content(tmp_path / "disk" / "model") == {"weights": "new", "notes.txt": "the user's"}


def test_where_files_cannot_be_linked_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    make(tmp_path / "model")
    with new_folder(tmp_path / "model", keep=lambda name: name != "gone") as draft:
        for name, text in NEW.items():
            (draft / name).write_text(text)
    assert content(tmp_path / "model") == {**OLD, **NEW}


def test_an_error_while_writing_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "model")
    message = "No space left on device; nothing has been changed"
    with pytest.raises(CheckpointError, match=message), new_folder(tmp_path / "model") as draft:
        (draft / "weights").write_text("half")
        raise OSError(28, "No space left on device")
    assert content(tmp_path / "model") == {**OLD, "gone": "not to be kept"}
    assert [item.name for item in tmp_path.iterdir()] == ["model"]
