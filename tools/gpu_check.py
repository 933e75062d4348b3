"""The first minutes on a GPU: what was proved on the CPU, run on the device, in two halves of under four minutes, without a network.

    make gpu                                  # or: python tools/gpu_check.py [--device pretended] [--half right|fast] [PART …]

Each part is a process of its own with a time limit, so that a crash, a hang or a full memory costs that part alone, and
what no longer fits into ``--minutes`` is skipped. A JSON line for each figure on standard output, a table at the end.
Exit code 1 if a golden case fails, a stage stops, or a part breaks off; 2 if there is no GPU.

``--device pretended`` is a dry run on tests/devices/pretended.py with tiny sizes. It needs torch, transformers, accelerate,
peft, sentencepiece, safetensors, numpy and PyYAML; of what else hanmo imports (``CARRIED``), packages that are missing are
taken from the wheels in build/gpu-wheels (make gpu-wheels).
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEELS, SITE = ROOT / "build" / "gpu-wheels", ROOT / "build" / "gpu-site"
CARRIED = ("jieba", "rjieba", "tqdm")
PRETENDED = "pretended"
# Seconds of each part, in the order they are run: whether it is right, and how fast it is.
HALVES = {
    "right": {"backends": 25, "golden": 75, "hazards": 40, "scores": 40, "resume": 45, "stages": 90},
    "fast": {"decode": 130, "step": 90},
}
LIMITS = {part: limit for half in HALVES.values() for part, limit in half.items()}
SHORTEST = 15.0  # seconds; a part for which less is left is skipped

Line = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"{', '.join(LIMITS)}; default: all")
    parser.add_argument("--device", default=os.environ.get("HANMO_GPU", "cuda"), choices=["cuda", PRETENDED])
    parser.add_argument("--half", choices=HALVES, help="default: both, one after the other")
    parser.add_argument("--minutes", type=float, default=3.8, help="of a half; parts that could end later are skipped")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.inside and (unknown := set(given.parts) - set(LIMITS)):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
    sys.path[:0] = [str(SITE), str(ROOT)]
    if given.inside:
        return _inside(given.parts[0], given.device)
    if message := carry():
        print(f"gpu_check: {message}", file=sys.stderr)
        return 2
    lines = run_part("machine", given.device, 60)
    if lines[-1].get("ok") is False:
        print(f"gpu_check: {lines[-1]['error']}", file=sys.stderr)
        return 2
    for half, limits in HALVES.items():
        if given.half in (None, half):
            lines += run_half([part for part in limits if part in (given.parts or limits)], given.device, given.minutes)
    print(table(lines), flush=True)
    return int(any(line["ok"] is False for line in lines))


def run_half(parts: list[str], device: str, minutes: float) -> list[Line]:
    """The lines of parts that share so many minutes."""
    started, lines = time.monotonic(), list[Line]()
    for part in parts:
        left = minutes * 60 - (time.monotonic() - started)
        # What a crowded machine pretends may take long; only the time of a real device is short.
        lines += run_part(part, device, left if device == PRETENDED else min(LIMITS[part], left))
    print(f"# {time.monotonic() - started:.0f} s for {', '.join(parts)}", flush=True)
    return lines


def carry() -> str | None:
    """Install what is missing from the carried wheels; says what is to be done where that cannot be."""
    missing = [name for name in CARRIED if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    advice = f"{', '.join(missing)} missing: run make gpu-wheels where there is a network, and bring {WHEELS.relative_to(ROOT)}"
    if not WHEELS.is_dir():
        return advice
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    command += ["--find-links", str(WHEELS), "--target", str(SITE), *missing]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"{advice} ({done.stderr.strip().splitlines()[-1]})" if done.returncode else None


def run_part(part: str, device: str, limit: float) -> list[Line]:
    """The lines of a part, which are printed as they come, and one more where it did not end by itself."""
    if limit < SHORTEST:
        line = {"part": part, "ok": None, "error": "skipped: no time is left"}
        print(json.dumps(line), flush=True)
        return [line]
    command = [sys.executable, __file__, "--inside", "--device", device, part]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    late = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
    late.start()
    lines: list[Line] = []
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith('{"part"'):
                lines.append(json.loads(text))
                print(text, end="", flush=True)
            else:
                print(text, end="", file=sys.stderr)
        code = process.wait()
    finally:
        late.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if code:
        seconds = time.monotonic() - began
        why = f"stopped at its limit of {limit:.0f} s" if seconds >= limit else f"ended with {code}"
        if not lines or lines[-1]["ok"] is not False:
            lines.append({"part": part, "ok": False, "error": f"{why} after {seconds:.0f} s"})
            print(json.dumps(lines[-1]), flush=True)
    return lines


def table(lines: list[Line]) -> str:
    rows = ["| part | what | ok | figures |", "| --- | --- | --- | --- |"]
    for line in lines:
        figures = ", ".join(f"{name} {value}" for name, value in line.items() if name not in ("part", "what", "ok"))
        ok = {True: "yes", False: "NO", None: "-"}[line["ok"]]
        rows.append(f"| {line['part']} | {line.get('what', '')} | {ok} | {figures} |")
    return "\n".join(rows)


# Inside a part


def _inside(part: str, device: str) -> int:
    """Run a part and print its lines; 1 where it broke off."""
    try:
        if part == "machine":
            _say(machine(device))
            return 0
        from tools import gpu_parts

        with _device(device) as name:
            for line in getattr(gpu_parts, part)(name, device == PRETENDED):
                _say({"part": part, **line})
        return 0
    except Exception as error:  # whatever a first run on new hardware brings; the other parts are still to come
        if part != "machine":
            import traceback

            traceback.print_exc()
        _say({"part": part, "ok": False, "error": f"{type(error).__name__}: {error}".partition("\n")[0][:300]})
        return 1


def _say(line: Line) -> None:
    print(json.dumps(line, ensure_ascii=False), flush=True)


def _device(device: str) -> AbstractContextManager[Any]:
    if device != PRETENDED:
        return nullcontext(device)
    from tests.devices.pretended import pretended

    return pretended("cuda")


def machine(device: str) -> Line:
    """What it runs on; ``ok`` is False where there is no such GPU."""
    import accelerate
    import torch
    import transformers

    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
    if device == PRETENDED:
        return {"part": "machine", "what": "a pretended GPU: a dry run with tiny sizes", "ok": True, **versions}
    if not torch.cuda.is_available():
        advice = "try the dry run: python tools/gpu_check.py --device pretended"
        return {"part": "machine", "ok": False, "error": f"no GPU that torch {torch.__version__} can use; {advice}"}
    found = torch.cuda.get_device_properties(torch.device(device))
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    return {"part": "machine", "what": found.name, "ok": True, "memory": memory, "cuda": torch.version.cuda, **versions}


if __name__ == "__main__":
    sys.exit(main())
