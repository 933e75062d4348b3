"""The first minutes on a GPU: what was proved on the CPU, run on the device, in under four minutes and without a network.

    make gpu                                  # or: python tools/gpu_check.py [--device pretended] [PART …]

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
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEELS, SITE = ROOT / "build" / "gpu-wheels", ROOT / "build" / "gpu-site"
CARRIED = ("jieba", "rjieba", "tqdm")
PRETENDED = "pretended"
LIMITS = {"golden": 80, "decode": 60, "step": 75, "stages": 90}  # seconds of each part, in the order they are run
SIZE = "pangu-2.6b"
SHORTEST = 15.0  # seconds; a part for which less is left is skipped
# By how much a device's results may differ from those recorded on a CPU in fp32; a CPU's own in fp16 and bf16 differ by a
# third of it at most. Log-probabilities and entropies in nats, the largest difference; the mean loss relatively.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.45}
LOSS_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2}

Line = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"{', '.join(LIMITS)}; default: all")
    parser.add_argument("--device", default=os.environ.get("HANMO_GPU", "cuda"), choices=["cuda", PRETENDED])
    parser.add_argument("--minutes", type=float, default=3.8, help="parts that could end later are skipped")
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
    started = time.monotonic()
    lines = []
    for part in ["machine", *(given.parts or LIMITS)]:
        left = given.minutes * 60 - (time.monotonic() - started)
        # What a crowded machine pretends may take long; only the time of a real device is short.
        most = left if given.device == PRETENDED else LIMITS.get(part, 60)
        lines += run_part(part, given.device, min(most, left))
        if part == "machine" and lines[-1].get("ok") is False:
            print(f"gpu_check: {lines[-1]['error']}", file=sys.stderr)
            return 2
    print(f"# {time.monotonic() - started:.0f} s in all\n{table(lines)}", flush=True)
    return int(any(line["ok"] is False for line in lines))


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
        with _device(device) as name:
            for line in {"golden": golden, "decode": decode, "step": step, "stages": stages}[part](
                name, device == PRETENDED
            ):
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


def golden(device: Any, dry: bool) -> Iterator[Line]:
    """The golden cases of every family in every dtype: rows equal, replies in fp32 too, the rest within tolerances."""
    import torch

    from hanmo.checkpoints import open_model
    from tests.golden.make import FOLDER, compute
    from tests.unit.tiny import NAMES

    for dtype in ("fp32",) if dry else TOLERANCES:
        for family in NAMES[:2] if dry else NAMES:
            recorded = json.loads((FOLDER / family / "golden.json").read_text(encoding="utf-8"))
            found = compute(open_model(FOLDER / family, dtype=dtype, device=device))
            apart = {
                name: (torch.tensor(found[name]).float() - torch.tensor(recorded[name])).abs().max().item()
                for name in ("logprob", "entropy")
            }
            loss = abs(found["loss"] / recorded["loss"] - 1)
            same = sum(
                a == b
                for name in recorded["replies"]
                for a, b in zip(found["replies"][name], recorded["replies"][name], strict=True)
            )
            asked = sum(map(len, recorded["replies"].values()))
            ok = all(found[name] == recorded[name] for name in ("rows", "labels", "contexts"))
            ok = ok and max(apart.values()) <= TOLERANCES[dtype] and loss <= LOSS_TOLERANCES[dtype]
            ok = ok and (dtype != "fp32" or same == asked)  # rounding may choose another of two nearly equal tokens
            figures = {name: f"{value:.1e}" for name, value in {**apart, "loss": loss}.items()}
            yield {"what": f"{family} {dtype}", "ok": ok, **figures, "replies": f"{same}/{asked}"}


def decode(device: Any, dry: bool) -> Iterator[Line]:
    """Tokens a second of PanGu-2.6B with random weights, in bf16, greedy: one reply, and a batch; kernels launched one by
    one, and captured. Of one reply also how fast the weights are read.
    """
    from unittest.mock import patch

    import torch

    from hanmo.generation import engine
    from hanmo.generation.decode import generate
    from hanmo.generation.settings import Settings
    from hanmo.records import PromptResponse

    opened = _pangu(device, torch.bfloat16, dry)
    weights = sum(one.numel() * one.element_size() for one in opened.network.parameters())
    context = opened.family.context(PromptResponse("今天天气怎么样？", ""), 512)
    tokens = 4 if dry else 128
    for batch, captured in product((1, 2) if dry else (1, 32), (False, True)):
        settings = Settings(do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
        with patch.object(engine, "recorder", engine.recorder if captured else lambda _: None):
            generate(opened, [context] * batch, settings.change(max_new_tokens=4, min_new_tokens=4))  # warms up
            seconds, peak = _measured(lambda: generate(opened, [context] * batch, settings), dry)  # noqa: B023
        found = {"tokens/s": round(batch * tokens / seconds, 1), "peak GiB": peak}
        if batch == 1:
            found["GB/s of weights"] = round(weights * tokens / seconds / 1e9)
        yield {"what": f"{SIZE} bf16, batch {batch}{', captured' if captured else ''}", "ok": True, **found}


def step(device: Any, dry: bool) -> Iterator[Line]:
    """Seconds and peak memory of an SFT step of PanGu-2.6B by the trainer: fp32 weights, bf16 autocast, AdamW."""
    import torch

    from hanmo.data.rows.dataset import RowDataset
    from hanmo.rows import Part
    from hanmo.training.arguments import arguments
    from hanmo.training.trainer import RowTrainer

    batch, length = (2, 16) if dry else (8, 512)
    opened = _pangu(device, torch.float32, dry)
    rows = RowDataset(opened.family)
    ids = torch.randint(10, 100, (batch, length), generator=torch.Generator().manual_seed(0)).tolist()
    for row in ids:
        rows.append([Part(tuple(row[: length // 2]), False), Part(tuple(row[length // 2 :]), True)])
    with TemporaryDirectory() as folder:
        settings = {
            "per_device_train_batch_size": batch,
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
        }
        lower = {} if dry else {"bf16": True}
        for steps in (1, 3):  # the first run warms up; seconds are of the second one's
            args = arguments(Path(folder), {**settings, **lower, "max_steps": steps})
            trainer = RowTrainer(opened.network, args, rows)
            seconds, peak = _measured(trainer.train, dry)
    found = {"s/step": round(seconds / 3, 3), "tokens/s": round(3 * batch * length / seconds), "peak GiB": peak}
    yield {"what": f"{SIZE} SFT, {batch} x {length}", "ok": True, **found}


def stages(device: Any, dry: bool) -> Iterator[Line]:
    """Every stage once, each on one family after another, so that few stages missing of few families is what is cut."""
    from tests.devices.stages import PAIRS, STAGES, prepare, run_stage
    from tests.unit.tiny import NAMES

    families = NAMES[:1] if dry else NAMES
    with TemporaryDirectory() as folder:
        for family in families:
            prepare(Path(folder) / family, family)
        for turn in range(len(families)):
            for number, stage in enumerate(list(STAGES)[:: 4 if dry else 1]):
                family = families[(number + turn) % len(families)]
                if (stage, family) not in PAIRS:
                    continue
                began = time.monotonic()
                try:
                    entries = run_stage(stage, Path(folder) / family, Path(folder) / f"{family}-{stage}")
                    losses = [round(entry["loss"], 4) for entry in entries if "loss" in entry]
                    line: Line = {"ok": bool(losses), "losses": losses}
                except Exception as error:  # the other stages are still to come
                    line = {"ok": False, "error": f"{type(error).__name__}: {error}".partition("\n")[0][:300]}
                yield {"what": f"{stage}: {family}", **line, "seconds": round(time.monotonic() - began, 1)}


def _pangu(device: Any, dtype: Any, dry: bool) -> Any:
    """PanGu-2.6B with random weights, made where they are computed with; of the golden model's vocabulary."""
    import torch

    from hanmo.families.base import OpenedModel
    from hanmo.training.opening import find_size

    kind, name = find_size(SIZE)
    tokenizer = kind.tokenizer_class.from_pretrained(ROOT / "tests" / "golden" / "pangu")
    small = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 128} if dry else {}
    config = kind.config_class(**{**kind.original_format.SIZES[name].config, **small})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if dry else dtype)
    try:
        with torch.device("cpu" if dry else device):
            network = kind.network_class(config)
    finally:
        torch.set_default_dtype(before)
    return OpenedModel(network.to(device).eval(), kind(config, tokenizer), f"{name}, random weights")


def _measured(work: Any, dry: bool) -> tuple[float, float | None]:
    """Seconds, and the most memory that was taken, in GiB."""
    import torch

    if not dry:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    if not dry:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, None if dry else round(torch.cuda.max_memory_allocated() / 2**30, 2)


if __name__ == "__main__":
    sys.exit(main())
