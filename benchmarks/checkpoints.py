"""Splitting, re-splitting and converting an original EVA checkpoint, next to cp and to plain torch.load and torch.save.

Every measurement is a process of its own that counts from after its imports until its files are on the disk. Memory is
the peak of anonymous pages, sampled; pages of mapped files, which the system takes back when it likes, are told apart.

python -m benchmarks.checkpoints [--quick] [--size eva2.0-large] [--folder PLACE]
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.common import Figure, arguments, finish
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.files.tensor_files import BLOCK, LazyTensor, write_torch
from hanmo.checkpoints.originals.config_inference import expected_shapes
from hanmo.checkpoints.originals.recognise import merge
from hanmo.checkpoints.originals.weights import rank_file
from hanmo.families import load
from hanmo.families.weight_map import TensorMapping, expand
from tests.unit.checkpoint_files import tiny_eva

FAMILY = load("eva")
MEGATRON = next(layout for layout in FAMILY.original_format.LAYOUTS if layout.splits)
LIMIT_MB = 1000.0


def table(size: str) -> tuple[list[TensorMapping], dict[str, tuple[int, ...]]]:
    """The original's tensors at this size, and the shapes of ours."""
    config = FAMILY.config_class(**FAMILY.original_format.SIZES[size].config)
    return expand(MEGATRON.entries, config), expected_shapes(FAMILY, config)


def write_source(folder: Path, size: str) -> int:
    """An original checkpoint of random half-precision weights, with a vocabulary; its bytes."""
    entries, shapes = table(size)
    noise = torch.randn(BLOCK // 2, generator=torch.Generator().manual_seed(0)).half()

    def random(numbers: int) -> Callable[[], Iterator[torch.Tensor]]:
        return lambda: (noise[: numbers - start] for start in range(0, numbers, len(noise)))

    tensors: dict[str, LazyTensor] = {}
    for entry in entries:
        whole = (sum(shapes[name][0] for name in entry.ours), *shapes[entry.ours[0]][1:])
        stored = LazyTensor(whole, torch.float16, random(torch.Size(whole).numel()))
        tensors.update(dict.fromkeys((entry.theirs, *entry.copies), stored))
    (folder / "1").mkdir(parents=True)
    write_torch({"module": tensors, "iteration": 1, "mp_world_size": 1}, folder / "1" / rank_file(0))
    (folder / "latest_checkpointed_iteration.txt").write_text("1")
    tokens = list(tiny_eva().tokenizer.get_vocab())
    tokens += [f"filler{number}" for number in range(shapes["word_embeds.weight"][0] - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return (folder / "1" / rank_file(0)).stat().st_size


def copy(source: Path, target: Path, _: SimpleNamespace) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)


def ours(source: Path, target: Path, job: SimpleNamespace) -> None:
    how: dict[str, Any] = {"to": "original", "ranks": job.ranks} if job.ranks else {"size": job.size}
    convert(source, target, vocab=source / "vocab.txt", **how)


def plain(source: Path, target: Path, job: SimpleNamespace) -> None:
    """The same work as one would write it with torch: load everything, cut, save."""
    files = sorted((source / "1").glob("*.pt"))
    ranks = [torch.load(file, map_location="cpu", weights_only=True)["module"] for file in files]
    entries, _ = table(job.size)
    whole = {
        entry: [
            merge([rank[entry.theirs] for rank in ranks], len(entry.ours), part, entry.cut)
            for part in range(len(entry.ours))
        ]
        for entry in entries
    }
    target.mkdir()
    if not job.ranks:
        state = {
            name: part.clone() for entry, parts in whole.items() for name, part in zip(entry.ours, parts, strict=True)
        }
        save_file(state, target / "model.safetensors")
    for rank in range(job.ranks):
        tensors = {}
        for entry, parts in whole.items():
            pieces = [part if entry.cut is None else part.chunk(job.ranks, entry.cut)[rank] for part in parts]
            tensors.update(dict.fromkeys((entry.theirs, *entry.copies), torch.cat(pieces)))
        torch.save({"module": tensors, "iteration": 1}, target / rank_file(rank))


WORK = {"copy": copy, "ours": ours, "plain": plain}


def measure(way: str, source: Path, target: Path, size: str, ranks: int) -> dict[str, float]:
    """Seconds and memory of one way to make ``target``, in a process of its own; ranks 0 is safetensors."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()  # what an earlier measurement has not yet written is not this one's
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--job", way, str(source), str(target), size, str(ranks)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(run.stdout.splitlines()[-1])


def job(way: str, source: str, target: str, size: str, ranks: str) -> None:
    """What such a process does: the work, flushed, while a thread watches the memory."""
    peaks = {"RssAnon": 0.0, "RssFile": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for key, value in memory().items():
                peaks[key] = max(peaks[key], value)

    watcher = threading.Thread(target=watch)
    start = memory()
    watcher.start()
    began = time.perf_counter()
    WORK[way](Path(source), Path(target), SimpleNamespace(size=size, ranks=int(ranks)))
    for file in Path(target).rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    used = {"anonymous": peaks["RssAnon"] - start["RssAnon"], "mapped": peaks["RssFile"] - start["RssFile"]}
    print(json.dumps({"seconds": seconds, **used}))


def memory() -> dict[str, float]:
    """Anonymous and file-backed resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {
        key: int(value.split()[0]) / 1000
        for key, value in (line.split(":") for line in lines)
        if key in ("RssAnon", "RssFile")
    }


def compare(what: str, source: Path, target: Path, size: str, ranks: int, rounds: int) -> list[Figure]:
    """By turns, so that whatever else the machine does hits all; the median counts, for the disk's speed varies."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WORK}
    for _ in range(rounds):
        for way, said in runs.items():
            said.append(measure(way, source, target, size, ranks))
            print(f"# {what}, {way}: " + ", ".join(f"{key} {value:.1f}" for key, value in said[-1].items()), flush=True)
    mine, cp, torchs = (
        {key: statistics.median(one[key] for one in runs[way]) for key in runs[way][0]}
        for way in ("ours", "copy", "plain")
    )
    return [
        Figure.cost(f"{what}: time, against cp", mine["seconds"], cp["seconds"], "s", 1 / 1.5),
        Figure.cost(f"{what}: time, against torch", mine["seconds"], torchs["seconds"], "s", 1),
        Figure.cost(f"{what}: anonymous memory, against {LIMIT_MB:.0f} MB", mine["anonymous"], LIMIT_MB, "MB", 1),
        Figure.cost(f"{what}: anonymous memory, against torch", mine["anonymous"], torchs["anonymous"], "MB", 1),
    ]


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--size", default="eva2.0-xlarge", help="released size of EVA")
    parser.add_argument("--folder", help="where to write: three times the file's size is needed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="eva2.0-base, once")
    parser.add_argument("--job", nargs=5, help="one measurement, in this process")
    options = parser.parse_args()
    if options.job:
        job(*options.job)
        return 0
    if options.quick:
        options.size, options.rounds = "eva2.0-base", 1
    _, shapes = table(options.size)
    needed = 3 * 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        if (free := shutil.disk_usage(place).free) < 1.2 * needed:
            sys.exit(f"{place}: {free:,} bytes free, {needed:,} needed; choose a smaller --size or another --folder")
        source, split, target = (Path(place) / name for name in ("source", "split", "target"))
        print(f"# {options.size}, half precision: {write_source(source, options.size):,} bytes", flush=True)
        figures = compare("1 to 4 ranks", source, target, options.size, 4, options.rounds)
        figures += compare("to safetensors", source, target, options.size, 0, options.rounds)
        measure("ours", source, split, options.size, 4)
        figures += compare("4 to 2 ranks", split, target, options.size, 2, options.rounds)
    return finish(figures, options.check)


if __name__ == "__main__":
    sys.exit(main())
