"""What benchmark scripts share: where data lies, timing two things alternately, and how figures are reported."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Scripts run from anywhere: the checkout comes first on the path, and never this folder, where tokenizers.py would
# hide the package of that name from transformers. So import this before anything else, or run with -m.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(place for place in sys.path if Path(place).resolve() != _HERE)]

from tests.places import DATA, PARITY, VOCAB  # noqa: E402

__all__ = ["DATA", "PARITY", "VOCAB", "Figure", "alternate", "arguments", "finish", "real_texts"]


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark. ``ratio`` is above 1 where ours is better; the goal is met where it reaches it."""

    name: str
    ours: float
    peer: float
    unit: str
    ratio: float
    goal: float
    met: bool

    @classmethod
    def rate(cls, name: str, ours: float, peer: float, unit: str, goal: float) -> Figure:
        """A figure where more is better (tokens/s, MB/s)."""
        return cls(name, _short(ours), _short(peer), unit, _short(ours / peer), goal, ours / peer >= goal)

    @classmethod
    def cost(cls, name: str, ours: float, peer: float, unit: str, goal: float) -> Figure:
        """A figure where less is better (seconds, MB)."""
        return cls(name, _short(ours), _short(peer), unit, _short(peer / ours), goal, peer / ours >= goal)


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a goal is missed")
    return parser


def alternate(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int = 3) -> tuple[float, float]:
    """The best seconds of each, run by turns so that whatever else the machine does hits both."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, work in enumerate((ours, peer)):
            start = time.perf_counter()
            work()
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0], best[1]


def finish(figures: Sequence[Figure], check: bool) -> int:
    """Print the machine and a JSON line per figure, last of all; the exit code."""
    print(
        f"# {platform.processor() or platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
    for figure in figures:
        print(json.dumps(asdict(figure), ensure_ascii=False), flush=True)
    return int(check and not all(figure.met for figure in figures))


def real_texts(limit: int) -> list[str]:
    """About ``limit`` bytes of real Chinese text, mixed: pretraining documents and turns of dialogues.

    From the folder named by HANMO_DATA where it is there; else the 30 kB of the package chatterbot-corpus.
    """
    sources = [_lines(path) for path in _files()] or [_packaged()]
    texts: list[str] = []
    size = 0
    while sources and size < limit:  # by turns, so that any size is a mixture
        for source in list(sources):
            text = next(source, None)
            if text is None:
                sources.remove(source)
            elif text:
                texts.append(text)
                size += len(text.encode())
    return texts


def _files() -> list[Path]:
    kept = ("pretrain/*.jsonl.gz", "dialogue/lccc_base/dialogs.txt.gz", "kdconv/eva_format/*.txt.gz")
    return sorted(path for pattern in kept for path in DATA.glob(pattern))


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if path.name.endswith(".jsonl.gz"):
                yield from _strings(json.loads(line))
            else:
                yield from line.rstrip("\n").split("\t")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _packaged() -> Iterator[str]:
    import chatterbot_corpus
    import yaml

    for path in sorted((Path(chatterbot_corpus.__file__).parent / "data" / "chinese").glob("*.yml")):
        yield from _strings(yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"])
