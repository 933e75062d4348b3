"""Damaged files in bulk: each honest file with a few random changes, read by what users would read it with.

    found = fuzz(kinds, count=300, work=tmp_path)
    assert not [one for one in found if one.kind not in OK]

One copy of this process reads all files, one after the other, within limits of time and memory; where a file ends it, another copy
goes on behind that file. What is done to a file is a function of its kind and number alone.
"""

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

import psutil
import torch

from hanmo.errors import HanmoError
from tests.hostile import FUSE, MEMORY, SECONDS, WAIT, resident

OK = ("fine", "message")
MESSAGE = 5_000  # characters; what is said about a file must be readable
# What a file would do if anything in it were run: make this file in the current folder.
CANARY = "executed"
_HOSTILE = (
    b"cposix\nsystem\n(S'touch executed'\ntR.",
    b"\x80\x02cposix\nsystem\nX\x0e\x00\x00\x00touch executed\x85R.",
    b'"auto_map": {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", null]}, ',
    b"{{ cycler.__init__.__globals__.os.popen('touch executed') }}",
    b"!!python/object/apply:os.popen ['touch executed']",
    b"__import__('os').system('touch executed')",
)
_PIECES = (
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xe4\xbd", b"\\ud83d", b"\xc4\xe3\xba\xc3", b"\r", b"\n\n", b"\t", b'"', b"[", b"{", b"]", b"}",
    b"9" * 5000, b"1e400", b"NaN", b"-1", b"100000000", b"null", b"[" * 20_000, b"\xf0\x9f\x98\x80", b"\xed\xa0\xbd", b"''", b",,", b": ",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 0.5, 10**8, 10**30, float("inf"), float("nan"), "x", "", "\ud83d", "\0", "/etc/passwd", [], {}, [[]],
    {"a": []}, [1, "x"], "好" * 3000,
)  # fmt: skip


# What a message never holds.
_INNER = ("Traceback (most recent", "Exception raised from", "frame #0:")
Action = Callable[[Path, str], object]


@dataclass(frozen=True)
class Kind:
    """A class of files.

    Attributes:
        honest: a folder that every action reads without complaint.
        damaged: the files in it that are damaged, one at a time.
        actions: what is done with a copy of the folder and the name of the damaged file; one for each copy.
        whole: an action reads the whole folder, whatever the name.
    """

    honest: Path
    damaged: tuple[str, ...]
    actions: tuple[Action, ...]
    whole: bool = False


@dataclass(frozen=True)
class Found:
    """What came of a damaged file: ``kind`` as in ``hostile.Outcome``."""

    name: str
    number: int
    kind: str
    printed: str


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The content of a file after one to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice((_structure, _structure, _bytes))(data, rng)
    return data


def _structure(data: bytes, rng: random.Random) -> bytes:
    """A changed value of a JSON file, or else a changed line."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.dumps(_value(json.loads(data), rng), ensure_ascii=False).encode("utf-8", "surrogatepass")
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    with contextlib.suppress(ValueError, RecursionError):  # of JSON lines
        lines[place] = json.dumps(_value(json.loads(lines[place]), rng)).encode()
        return b"\n".join(lines)
    match rng.randrange(4):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[place])
        case 2:
            lines[place] = _bytes(lines[place], rng)
        case _:
            rng.shuffle(lines)
    return b"\n".join(lines)


def _value(value: Any, rng: random.Random) -> Any:
    """The value with something in it replaced, left out or put a level deeper."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        value = value.copy()
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = _value(value[key], rng)
        return value
    return rng.choice((*_VALUES, [value], {"value": value}))


def _bytes(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 1, 2, 8, 200)))
    match rng.randrange(8):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:start] + rng.randbytes(end - start) + data[end:]
        case 3:
            return data[:start] + rng.choice(_HOSTILE) + data[start:]
        case 4:
            return rng.choice((b"\xef\xbb\xbf" + data, data + b"\x00", data.replace(b"\n", b"\r\n"), b""))
        case 5:
            with contextlib.suppress(UnicodeError):
                return data.decode().encode(rng.choice(("utf-16", "gb18030", "utf-8-sig")))
    return data[:start] + rng.choice(_PIECES) + data[rng.choice((start, end)) :]


def fuzz(kinds: dict[str, Kind], count: int, work: Path) -> list[Found]:
    """What comes of ``count`` damaged files, shared evenly between the kinds; in the order of their numbers."""
    for kind in kinds.values():  # once here, so that copies of this process have imported everything
        names = kind.damaged[:1] if kind.whole else kind.damaged
        for action, name in product(kind.actions, names):
            folder = _copy(kind, work / "honest")
            _read(action, folder, name)
            shutil.rmtree(folder)
    cases = [(name, number) for number in range(-(-count // len(kinds))) for name in kinds][:count]
    found: list[Found] = []
    while len(found) < count:
        found += _serve(kinds, cases[len(found) :], work)
    return found


def _copy(kind: Kind, folder: Path) -> Path:
    return Path(shutil.copytree(kind.honest, folder, copy_function=shutil.copyfile))


def _read(action: Action, folder: Path, name: str) -> None:
    """Read an honest folder; it must have nothing to complain of."""
    try:
        action(folder, name)
    except SystemExit as end:
        assert not end.code, name


def _serve(kinds: dict[str, Kind], cases: list[tuple[str, int]], work: Path) -> Iterator[Found]:
    """What comes of the first cases, until one of them ends the copy that reads them."""
    answers, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of this process are not in the copy, and are not needed there
        child = os.fork()
    if child == 0:
        os.close(answers)
        _child(kinds, cases, work, tell)
    os.close(tell)
    with os.fdopen(answers, "rb", buffering=0) as lines:
        for name, number in cases:
            ready = _wait(lines, child)
            line = lines.readline() if ready else b""
            if not line:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                hung = not ready or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF)
                yield Found(name, number, "hung" if hung else "crashed", f"status {status}")
                return
            kind, printed = json.loads(line)
            yield Found(name, number, kind, printed)
            if kind == "memory":
                break
    os.waitpid(child, 0)


def _wait(lines: IO[bytes], child: int) -> bool:
    """Whether an answer, or the end of the copy, has come; not if the copy has stood still for ``WAIT`` seconds."""
    process, before = psutil.Process(child), -1.0
    while not select.select([lines], [], [], WAIT)[0]:
        used = sum(process.cpu_times())
        if used == before:
            return False
        before = used
    return True


def _child(kinds: dict[str, Kind], cases: list[tuple[str, int]], work: Path, tell: int) -> None:
    """The copy's part; it ends here."""
    try:
        os.chdir(work)
        with tempfile.TemporaryFile() as printed, os.fdopen(os.open(os.devnull, os.O_RDONLY)) as null:
            for stream, target in ((0, null), (1, printed), (2, printed)):
                os.dup2(target.fileno(), stream)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (data + FUSE, data + FUSE))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for name, number in cases:
                rng = random.Random(f"{name} {number}")
                action, file = rng.choice(kinds[name].actions), rng.choice(kinds[name].damaged)
                folder = _copy(kinds[name], work / f"{name} {number}")
                (folder / file).write_bytes(damaged((kinds[name].honest / file).read_bytes(), rng))
                start = resident()
                kind, text = _outcome(action, folder, file, printed.fileno())
                if _peak() - start > MEMORY:
                    kind = "memory"
                if (work / CANARY).exists() or (folder / CANARY).exists():
                    kind = "executed"
                    (work / CANARY).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                os.write(tell, (json.dumps([kind, text[-3000:]]) + "\n").encode())
                if kind == "memory":
                    break
    finally:
        os._exit(0)


def _peak() -> int:
    """The most bytes that this process, or a child of its own, has had in memory."""
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(used) * 1024


def table(found: list[Found]) -> str:
    """How many files of each kind came to what."""
    counts = Counter((one.name, one.kind) for one in found)
    outcomes = [*OK, *sorted({one.kind for one in found} - {*OK})]
    rows = [["", *outcomes]]
    rows += [
        [name, *(str(counts[name, kind]) for kind in outcomes)] for name in dict.fromkeys(one.name for one in found)
    ]
    return "\n".join(f"{name:<24}{''.join(f'{cell:>12}' for cell in cells)}" for name, *cells in rows)


def _outcome(action: Action, folder: Path, name: str, printed: int) -> tuple[str, str]:
    os.ftruncate(printed, 0)
    os.lseek(printed, 0, os.SEEK_SET)
    kind = "fine"
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        action(folder, name)
    except SystemExit as end:
        kind = "message" if end.code else "fine"
    except BaseException as error:
        if isinstance(error, HanmoError) or (isinstance(error, OSError) and error.errno):  # as ``main`` does
            print(f"hanmo: {error}")
            kind = "message"
        else:
            traceback.print_exc()
            kind = "traceback"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os.lseek(printed, 0, os.SEEK_SET)
    with os.fdopen(os.dup(printed), "rb") as file:
        text = file.read().decode("utf-8", "replace")
    said = text.rpartition("hanmo: ")[2]
    if kind == "message" and (len(said) > MESSAGE or any(mark in text for mark in _INNER)):
        kind = "traceback"
    if "hanmo: out of memory" in text:  # FUSE has kept it from the machine
        kind = "memory"
    return kind, text
