"""Shows faults to their tests, in a copy of the tree."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.mutants.mutations import Mutant

COPIED = ("hanmo", "tests", "benchmarks", "tools", "docs", "pyproject.toml", "README.md", "README.zh-CN.md")
LIMIT = 60.0, 10.0  # seconds for a fault: so many, and so many times what its tests took when they were measured


@dataclass(frozen=True)
class Outcome:
    """``killed`` by a test or by the time it took, or ``survived``; ``by`` is the test, or why there is none."""

    outcome: str
    by: str
    tests: int
    seconds: float


@dataclass(frozen=True)
class Shown:
    """A fault and the tests that execute it, which took so many seconds when they were measured."""

    mutant: Mutant
    tests: list[str]
    measured: float


def copy_tree(root: Path, tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, tree / name)
        elif (root / name).is_file():
            shutil.copy2(root / name, tree / name)


def run(root: Path, work: Path, shown: list[Shown], minutes: float) -> Iterator[tuple[Mutant, Outcome]]:
    """Plant the faults one by one; what was found before time was up, or before the tests' process ended."""
    copy_tree(root, work / "tree")
    wanted, outcomes = work / "wanted.json", work / "outcomes.jsonl"
    outcomes.unlink(missing_ok=True)
    asked = [
        {
            "key": one.mutant.key,
            "path": one.mutant.path,
            "scope": one.mutant.code_name,
            "start": one.mutant.start,
            "end": one.mutant.end,
            "text": one.mutant.text,
            "tests": one.tests,
            "limit": LIMIT[0] + LIMIT[1] * one.measured,
            "said": f"{place}/{len(shown)} {one.mutant.path}:{one.mutant.line} {one.mutant.what}: "
            f"{one.mutant.before} -> {one.mutant.text}",
        }
        for place, one in enumerate(shown, 1)
    ]
    wanted.write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
    shared = root.parent / "shared"
    environment = {
        "HANMO_PARITY": str(shared / "parity"),
        "HANMO_DATA": str(shared / "data"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **os.environ,
        "PYTHONPATH": str(work / "tree"),
        "MUTANTS_WANTED": str(wanted),
        "MUTANTS_OUTCOMES": str(outcomes),
        "MUTANTS_SECONDS": str(60 * minutes),
    }
    files = sorted({test.partition("::")[0] for one in shown for test in one.tests})
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "tools.mutants.planting",
        "-p",
        "no:cacheprovider",
    ]
    subprocess.run([*command, *files], cwd=work / "tree", env=environment, stdout=subprocess.DEVNULL, check=False)
    mutants = {one.mutant.key: one.mutant for one in shown}
    for line in outcomes.read_text(encoding="utf-8").splitlines() if outcomes.is_file() else []:
        found = json.loads(line)
        yield mutants[found.pop("key")], Outcome(**found)
