"""The check that is run first on a GPU: its parts on a pretended one, and what it says where there is none."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests import processes
from tests.devices.pretended import pretended
from tools import gpu_check, gpu_parts

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "gpu_check.py"


def run(*arguments: str, limit: float = 600) -> tuple[int, list[dict[str, object]], str]:
    """Exit code, JSON lines and standard error of the script."""
    done = processes.run([sys.executable, SCRIPT, *arguments], timeout=limit)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line[0] == "{"], done.stderr


def test_parts_of_tiny_sizes() -> None:
    """What is measured on a GPU runs as it stands on a device that refuses what a GPU refuses."""
    with pretended() as device:
        decoded = list(gpu_parts.decode(device, dry=True))
        steps = list(gpu_parts.step(device, dry=True))
    assert [line["what"] for line in decoded] == [
        f"{name} bf16, batch {size}{how}" for name in gpu_parts.SIZES for size in (1, 2) for how in ("", ", captured")
    ]
    assert len(steps) == 1
    assert all(line["ok"] and line["tokens/s"] > 0 for line in (*decoded, *steps))


@pytest.mark.parametrize("part", ["backends", "hazards", "scores", "resume"])
def test_what_must_be_right_is_looked_at(part: str) -> None:
    with pretended() as device:
        lines = list(getattr(gpu_parts, part)(device, dry=True))
    assert lines and all(line["ok"] for line in lines), lines


def test_a_golden_case_that_differs_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_parts.TOLERANCES, "fp32", -1.0)
    with pretended() as device:
        line = next(gpu_parts.golden(device, dry=True))
    assert line["ok"] is False and line["replies"] == "6/6"


def test_the_table_shows_what_failed_and_what_was_skipped() -> None:
    lines = [
        {"part": "golden", "what": "eva fp32", "ok": False, "loss": 2},
        {"part": "step", "ok": None, "error": "late"},
    ]
    assert gpu_check.table(lines).splitlines()[2:] == [
        "| golden | eva fp32 | NO | loss 2 |",
        "| step |  | - | error late |",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_message(capfd: pytest.CaptureFixture[str]) -> None:
    line = gpu_check.machine("cuda")
    assert line["ok"] is False and "--device pretended" in line["error"]


def test_wheels_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "CARRIED", ("json", "a_package_that_is_not_there"))
    monkeypatch.setattr(gpu_check, "WHEELS", gpu_check.ROOT / "no" / "wheels")
    message = gpu_check.carry()
    assert message is not None and message.startswith("a_package_that_is_not_there missing: run make gpu-wheels")


@pytest.mark.slow
def test_the_dry_run() -> None:
    code, lines, said = run("--device", "pretended", "--minutes", "40", limit=2400)
    assert code == 0, said
    assert {line["part"] for line in lines} == {"machine", *gpu_check.LIMITS}
    assert all(line["ok"] for line in lines)


def test_a_part_that_runs_late_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SHORTEST", 0.0)
    [line] = gpu_check.run_part("golden", "pretended", 0.5)
    assert line["ok"] is False and str(line["error"]).startswith("stopped at its limit of 0 s")


def test_a_part_for_which_no_time_is_left_is_skipped() -> None:
    assert gpu_check.run_part("golden", "pretended", 3.0) == [
        {"part": "golden", "ok": None, "error": "skipped: no time is left"}
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu() -> None:
    code, lines, said = run()
    assert code == 0, (lines, said)
