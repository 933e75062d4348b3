"""Run every benchmark and rewrite RESULTS.md: date, machine, versions, and a table of figures.

python -m benchmarks.run_all [NAME …]
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"common.py", "run_all.py"}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return f"{names[0]} x {len(names)}" if names else platform.processor() or platform.machine()


def run(script: Path) -> list[dict[str, object]]:
    """The figures a benchmark prints; what else it prints goes to standard error, as it comes."""
    print(f"{script.stem} …", file=sys.stderr, flush=True)
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script.stem}"], stdout=subprocess.PIPE, text=True, cwd=HERE.parent
    )
    if process.returncode:
        sys.exit(f"{script.name} failed with {process.returncode}")
    lines = process.stdout.splitlines()
    print("\n".join(line for line in lines if not line.startswith("{")), file=sys.stderr)
    return [json.loads(line) for line in lines if line.startswith("{")]


def table(figures: list[dict[str, object]]) -> list[str]:
    if not figures:
        return ["Not run: the peer is not installed here."]
    rows = ["| figure | ours | peer | unit | ratio | goal | met |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for figure in figures:
        cells = [figure[key] for key in ("name", "ours", "peer", "unit", "ratio", "goal")]
        rows.append(f"| {' | '.join(map(str, cells))} | {'yes' if figure['met'] else 'no'} |")
    return rows


def main() -> None:
    wanted = set(sys.argv[1:])
    scripts = [path for path in sorted(HERE.glob("*.py")) if path.name not in NOT_BENCHMARKS]
    if unknown := wanted - {path.stem for path in scripts}:
        sys.exit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(p.stem for p in scripts)}")
    packages = ("torch", "transformers", "numpy", "sentencepiece", "jieba")
    lines = [
        "# Results",
        "",
        "Rewritten by `make bench`. Ours and the peer run by turns in one process; a ratio above 1 means ours is better. Seconds on other",
        "machines differ, ratios less so.",
        "",
        f"{date.today()}, {processor()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages),
    ]
    for script in scripts:
        if not wanted or script.stem in wanted:
            lines += ["", f"## {script.stem}", "", *table(run(script))]
    target = HERE / "RESULTS.md"
    beside = target.with_suffix(".tmp")
    beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    beside.replace(target)
    print(f"wrote {target.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
