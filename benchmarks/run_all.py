"""Run every benchmark and rewrite RESULTS.md: date, machine, versions, and a table of figures for each.

    python -m benchmarks.run_all [NAME …]

The whole takes hours, so the page is written after each benchmark, and with NAMEs only their sections are replaced.
Sections that are no benchmark's (runs by hand) stay as they are.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"common.py", "llama.py", "run_all.py"}
PACKAGES = ("torch", "transformers", "numpy", "sentencepiece", "jieba")
FIRST = """# Results

Sections named after a script are written by `make bench`: ours and the peer run by turns in one run, and a ratio above 1
means ours is better. Seconds on other machines differ, ratios less so."""


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    processor = f"{names[0]} x {len(names)}" if names else platform.processor() or platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{date.today()}, {processor}, Python {platform.python_version()}, {versions}"


def run(name: str) -> list[dict[str, object]]:
    """The figures a benchmark prints; what else it prints goes to standard error."""
    print(f"{name} …", file=sys.stderr, flush=True)
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True, cwd=HERE.parent
    )
    if process.returncode:
        sys.exit(f"{name} failed with {process.returncode}")
    lines = process.stdout.splitlines()
    print("\n".join(line for line in lines if not line.startswith("{")), file=sys.stderr)
    return [json.loads(line) for line in lines if line.startswith("{")]


def table(figures: Iterable[Mapping[str, object]]) -> str:
    rows = ["| figure | ours | peer | unit | ratio | goal | met |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for figure in figures:
        cells = [figure[key] for key in ("name", "ours", "peer", "unit", "ratio", "goal")]
        rows.append(f"| {' | '.join(map(str, cells))} | {'yes' if figure['met'] else 'no'} |")
    return "\n".join(rows) if len(rows) > 2 else "Not run: the peer is not installed here."


def sections(page: str) -> dict[str, str]:
    """What stands under each heading of the second level, without what comes before the first."""
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in f"\n{page}".split("\n## ")[1:]}


def write(page: Path, parts: Mapping[str, str]) -> None:
    beside = page.with_suffix(".tmp")
    beside.write_text("\n\n".join([FIRST, *(f"## {name}\n\n{text}" for name, text in parts.items())]) + "\n", "utf-8")
    beside.replace(page)


def main() -> None:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.name not in NOT_BENCHMARKS)
    wanted = sys.argv[1:] or names
    if unknown := set(wanted) - set(names):
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    page = HERE / "RESULTS.md"
    for name in wanted:
        section = f"{machine()}\n\n{table(run(name))}"
        known = sections(page.read_text("utf-8")) if page.is_file() else {}
        known[name] = section
        write(page, {each: known[each] for each in [*names, *known] if each in known})
        print(f"wrote {name} into {page.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
