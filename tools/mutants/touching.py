"""Which fast tests execute a line: measured once, and again for test files that have changed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import coverage

from tools.mutants.mutations import Mutant

BUDGET = 90.0  # seconds of tests, as they took when they were measured, that a fault is shown at most
# Test files that import what is mutated, in all of which the fast tests are measured.
TESTS = ("tests/unit/test_*.py", "tests/parity/test_*.py")
MARKS = "not slow and not gpu"


class Touching:
    """The tests of every line of some files.

    Args:
        sources: paths of the files below ``root``.
    """

    def __init__(self, root: Path, work: Path, sources: list[str]):
        self._root, self._folder = root, work / "coverage"
        self._sources = sources
        self._folder.mkdir(parents=True, exist_ok=True)
        self._measure()
        self._seconds: dict[str, float] = {}
        self._lines: dict[str, dict[int, set[str]]] = {source: {} for source in sources}
        index = self._index()
        for name in sorted(set(index["runs"].values())):
            self._read(self._folder / name, {file for file, run in index["runs"].items() if run == name})

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests of a fault's lines, the quickest first, within ``BUDGET``."""
        lines = self._lines[mutant.path]
        found = set().union(*(lines.get(line, set()) for line in range(mutant.line, mutant.last_line + 1)))
        order = sorted((one for one in found if one in self._seconds), key=self._seconds.__getitem__)
        chosen, total = [], 0.0
        for one in order:
            total += self._seconds[one]
            if chosen and total > BUDGET:
                break
            chosen.append(one)
        return chosen

    def seconds(self, tests: list[str]) -> float:
        return sum(self._seconds[one] for one in tests)

    def _index(self) -> dict[str, dict[str, str]]:
        """``sources`` and ``tests``: digests by file; ``runs``: which measurement has the tests of a file."""
        file = self._folder / "index.json"
        return json.loads(file.read_text()) if file.is_file() else {"sources": {}, "tests": {}, "runs": {}}

    def _measure(self) -> None:
        index, digests = self._index(), {path: _digest(self._root / path) for path in self._sources}
        if index["sources"] != digests:
            index = {"sources": digests, "tests": {}, "runs": {}}
        found = [str(path.relative_to(self._root)) for pattern in TESTS for path in sorted(self._root.glob(pattern))]
        tests = {path: _digest(self._root / path) for path in found if self._concerns(self._root / path)}
        changed = [path for path, digest in tests.items() if index["tests"].get(path) != digest]
        if changed:
            name = hashlib.sha256(repr([(path, tests[path]) for path in changed]).encode()).hexdigest()[:12]
            print(f"measuring which lines the tests of {len(changed)} files execute", flush=True)
            self._run(self._folder / name, changed)
            index["tests"] |= {path: tests[path] for path in changed}
            index["runs"] |= dict.fromkeys(changed, name)
            (self._folder / "index.json").write_text(json.dumps(index, indent=1))

    def _concerns(self, test: Path) -> bool:
        """Whether a test file names what is mutated, or the stages and commands around it."""
        text = test.read_text(encoding="utf-8")
        names = (
            "losses",
            "families",
            "hanmo.training",
            "generation",
            "hanmo.data.rows",
            "hanmo.rows",
            "hanmo.nn",
            "tiny(",
            "toy",
        )
        return any(name in text for name in names)

    def _run(self, folder: Path, tests: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(self._root),
            "MUTANTS_COVERAGE": str(folder),
            "MUTANTS_SOURCES": ",".join(str(self._root / path) for path in self._sources),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tools.mutants.coverage_by_test",
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run([*command, "-m", MARKS, *tests], cwd=self._root, env=environment)
        if done.returncode not in (0, 1, 5) or not (folder / "seconds.json").is_file():
            sys.exit(f"the tests could not be measured (pytest ended with {done.returncode})")

    def _read(self, folder: Path, files: set[str]) -> None:
        seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
        self._seconds |= {test: spent for test, spent in seconds.items() if test.partition("::")[0] in files}
        data = coverage.CoverageData(str(folder / "lines"))
        data.read()
        for source, lines in self._lines.items():
            for line, contexts in data.contexts_by_lineno(str(self._root / source)).items():
                kept = {one for one in contexts if not one or one.partition("::")[0] in files}
                lines.setdefault(line, set()).update(kept)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
