"""Compare two checkouts bit for bit: what a change that must not change numerics has to leave alone.

    python tools/compare_checkouts.py BEFORE AFTER [--only NAME ...] [--renamed OLD=NEW ...] [--json]

Two parts. *journey*: both take the same models and data through ``hanmo``'s commands (ids, losses, every saved tensor,
replies, scores, converted and cleaned files). *parity*: both run their recorded and golden cases, and what the tests hand to
torch's and numpy's comparisons is compared bit by bit. Of the checkouts it uses the command line and the tests' names alone,
so that everything inside may be renamed and moved. Exit code 0: all is equal; 1: something differs; 2: it could not compare.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.comparing.hashes import facts  # noqa: E402
from tools.comparing.journey import commands, write_inputs  # noqa: E402

GOOD = ("done", "passed", "skipped")  # outcomes
SHOWN = 5  # differences of an item that are named
# Of the tests, those that compare tensors and are fast; patterns, because files may be split or moved.
TESTS = (
    "tests/parity", "tests/golden", "tests/unit/test_losses*.py", "tests/unit/test_generation_*.py",
    "tests/unit/test_*modeling*.py", "tests/unit/test_*attention*.py", "tests/unit/test_prenorm_networks*.py",
    "tests/unit/test_packing*.py", "tests/unit/test_families_*.py",
)  # fmt: skip

Facts = dict[str, str]  # name -> what it is; equal texts are equal bits


@dataclass(frozen=True)
class Item:
    """What came of comparing one item: a command of the journey, or a file of tests."""

    name: str
    compared: int
    differences: list[str]

    @property
    def equal(self) -> int:
        return self.compared - len(self.differences)


def compare(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> Item:
    """Facts by name; one that is there on one side only differs, and so does a failure in both."""
    names = [*before, *(name for name in after if name not in before)]
    different = [
        f"{one}: {before.get(one, 'missing')} before, {after.get(one, 'missing')} after"
        for one in names
        if before.get(one) != after.get(one)
    ]
    failed = [f"{said} (in both)" for said in failures(before) if said in failures(after)]
    return Item(name, len(names), different + failed)


def renamed(name: str, renames: Mapping[str, str]) -> str:
    """A name of before as it is called after; OLD stands for whole words, and for paths of them."""
    for old, new in renames.items():
        name = re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w-])", new.replace("\\", r"\\"), name)
    return name


def failures(found: Mapping[str, str]) -> list[str]:
    """Outcomes that are no success: where both checkouts fail alike, too little was compared to call them equal."""
    return [f"{name}: {said}" for name, said in found.items() if name.startswith("outcome of ") and said not in GOOD]


def environment(checkout: Path, **more: str) -> dict[str, str]:
    """The same for both: one thread, no network, and hanmo from the checkout."""
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(ROOT / "tools")]), "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
        **more,
    }  # fmt: skip


def journey(checkout: Path, who: str, work: Path, chosen: Sequence[str]) -> dict[str, Facts]:
    """Command -> what it made. Both checkouts make it in the same folder, so that paths in it are no difference."""
    planned = commands(work, chosen)
    if not planned:
        return {}
    shutil.rmtree(work / "made", ignore_errors=True)
    plan, codes = work / "plan.json", work / "codes.json"
    what = {"checkout": str(checkout), "who": who, "codes": str(codes), "commands": [one.as_dict() for one in planned]}
    plan.write_text(json.dumps(what), encoding="utf-8")
    environ = environment(checkout, XDG_CACHE_HOME=str(work / "cache"), THP_MEM_ALLOC_ENABLE="1")
    subprocess.run([sys.executable, "-m", "comparing.runner", plan], cwd=work, env=environ, check=True)
    ended = json.loads(codes.read_text(encoding="utf-8"))
    found = {}
    for one in planned:
        messages = one.folder.with_name(f"{one.folder.name}.stderr").read_text(encoding="utf-8").strip()
        said = f"exit code {ended[one.name]}: {messages[-600:]}" if ended[one.name] else "done"
        found[one.name] = {f"outcome of {one.name}": said, **facts(one.folder)}
    return found


def recorded_cases(checkouts: Sequence[Path]) -> dict[str, str]:
    """Where the recorded cases lie that both checkouts' tests read: beside the first that has some, or as the user says."""
    for shared in (checkout.parent / "shared" for checkout in checkouts):
        if (shared / "parity").is_dir():
            found = {"HANMO_PARITY": str(shared / "parity"), "HANMO_DATA": str(shared / "data")}
            return {name: os.environ.get(name) or place for name, place in found.items()}
    return {}


def parity(checkout: Path, who: str, work: Path, options: argparse.Namespace) -> dict[str, Facts]:
    """File of tests -> the outcome of each test, and what it compared."""
    paths = {path for pattern in TESTS for path in checkout.glob(pattern)}
    files = {one for path in paths for one in (path.rglob("test_*.py") if path.is_dir() else [path])}
    names = sorted(path.relative_to(checkout).as_posix() for path in files)
    names = [name for name in names if starts(f"parity/{name}", options.only)]
    if not names:
        return {}
    records = work / f"records-{who}"
    records.mkdir()
    spread = ["-n", str(options.processes), "--dist", "loadfile"] if options.processes > 1 else ["-n", "0"]
    command = [
        sys.executable, "-m", "pytest", "-v", "-p", "comparing.recording", "-p", "no:cacheprovider", "--tb=no",
        "--hypothesis-seed=0", "-m", "not slow and not gpu", f"--basetemp={work / 'pytest'}", *spread, *names,
    ]  # fmt: skip
    environ = environment(checkout, COMPARE_RECORDS=str(records), **recorded_cases((options.before, options.after)))
    subprocess.run(command, cwd=checkout, env=environ, stdout=sys.stderr)
    return read_records(records, who)


def read_records(folder: Path, who: str) -> dict[str, Facts]:
    """What ``comparing.recording`` wrote, by file of tests; why tests were skipped goes to standard error."""
    found: dict[str, Facts] = {}
    skipped: Counter[str] = Counter()
    for path in sorted(folder.glob("*.jsonl")):
        for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            test = entry["test"]
            item = found.setdefault(f"parity/{test.partition('::')[0]}", {})
            failed = entry["outcome"] == "failed"
            item[f"outcome of {test}"] = f"failed: {entry['said']}" if failed else entry["outcome"]
            item |= {f"{test} #{number}": call for number, call in enumerate(entry["calls"], 1)}
            if entry["outcome"] == "skipped":
                skipped[entry["said"]] += 1
    for reason, count in skipped.items():
        print(f"{who}: {count} tests: {reason}", file=sys.stderr)
    return found


def starts(name: str, chosen: Sequence[str]) -> bool:
    """Whether an item is among the chosen ones; all are where none is named."""
    return not chosen or name.startswith(tuple(chosen))


def run(options: argparse.Namespace, work: Path) -> list[Item]:
    """Both parts, one checkout after the other."""
    write_inputs(work, options.before)
    found = []
    for who, checkout in (("before", options.before), ("after", options.after)):
        made = journey(checkout, who, work, options.only)
        found.append(made | parity(checkout, who, work, options))
    renames = dict(one.split("=", 1) for one in options.renamed)
    before = {
        renamed(item, renames): {renamed(name, renames): value for name, value in made.items()}
        for item, made in found[0].items()
    }
    after = found[1]
    return [compare(name, before.get(name, {}), after.get(name, {})) for name in sorted({*before, *after})]


def table(items: Sequence[Item]) -> str:
    """A line for each item and a total for each part, then the first differences of every item that has some."""
    width = max(len(item.name) for item in items)
    lines = []
    for part in ("journey", "parity"):
        of_part = [item for item in items if item.name.startswith(f"{part}/")]
        if of_part:
            lines.append(f"{part:<{width}}  compared     equal different")
            compared, equal = sum(item.compared for item in of_part), sum(item.equal for item in of_part)
            rows = [(item.name, item.compared, item.equal) for item in of_part] + [(f"{part} in all", compared, equal)]
            lines += [f"{name:<{width}} {all_:9,} {same:9,} {all_ - same:9,}" for name, all_, same in rows] + [""]
    for item in items:
        lines += [f"{item.name}: {one}" for one in item.differences[:SHOWN]]
        more = len(item.differences) - SHOWN
        lines += [f"{item.name}: and {more:,} more"] if more > 0 else []
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare two checkouts of hanmo bit for bit.")
    parser.add_argument("before", type=folder)
    parser.add_argument("after", type=folder)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="items whose names start so: journey, parity, journey/glm, …",
    )
    parser.add_argument(
        "--renamed", nargs="+", default=[], metavar="OLD=NEW", help="names of tests, files or fields that were changed"
    )
    parser.add_argument("--processes", type=int, default=2, help="that run tests at the same time; default: 2")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    if wrong := [one for one in options.renamed if "=" not in one]:
        parser.error(f"--renamed {wrong[0]}: expected OLD=NEW")
    with tempfile.TemporaryDirectory(prefix="compare-") as work:
        items = run(options, Path(work).resolve())
    if not items:
        parser.error(f"--only {' '.join(options.only)}: no item is called so")
    print(json.dumps([asdict(item) for item in items], ensure_ascii=False, indent=1) if options.json else table(items))
    return int(any(item.differences for item in items))


def folder(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "hanmo").is_dir() or not (path / "tests" / "golden").is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no checkout: expected the folders hanmo and tests/golden in it")
    return path


if __name__ == "__main__":
    sys.exit(main())
