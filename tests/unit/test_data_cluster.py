"""Cleaning with datatrove's executors: the local one, and scripts for Slurm, run by a stand-in for its commands."""

import os
import stat
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from hanmo.data.parallel.cluster import run_local, run_slurm
from hanmo.data.prepare.cleaning.clean import clean
from hanmo.data.prepare.cleaning.recipe import load
from hanmo.records import Dialogue, write_records

SBATCH = """#!/bin/bash
# A stand-in: keeps the arguments, runs each task of the array at once, answers as Slurm does.
for last; do :; done
echo "$@" >> "$SLURM_LOG"
offset=${1#*RUN_OFFSET=}
range=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$last")
grep -q merge_stats "$last" || for task in $(seq 0 "$range"); do
  SLURM_ARRAY_TASK_ID=$task RUN_OFFSET=$offset SLURM_NODELIST=localhost bash "$last" > "$SLURM_LOG.$RANDOM" 2>&1 || exit 1
done
echo "Submitted batch job $(wc -l < "$SLURM_LOG")"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


def _corpus(folder: Path, count: int = 900) -> Path:
    turns = [(f"第{n}次见面你还好吗", f"我第{n}次说我很好呀" + "，打13812345678" * (n % 7 == 0)) for n in range(count)]
    write_records(folder / "in.jsonl", [Dialogue(pair) for pair in turns])
    return folder / "in.jsonl"


@pytest.fixture
def expected(tmp_path: Path) -> bytes:
    source = _corpus(tmp_path)
    clean(load("eva"), [source], tmp_path / "expected.jsonl")
    return (tmp_path / "expected.jsonl").read_bytes()


@pytest.mark.slow
def test_local_executor_with_two_workers_writes_the_same(expected: bytes, tmp_path: Path) -> None:
    job = partial(clean, load("eva"), [tmp_path / "in.jsonl"], tmp_path / "out.jsonl")
    run_local(job, 3, 2, tmp_path / "logs")
    assert len(list((tmp_path / "logs" / "completions").iterdir())) == 3
    done = job()
    assert done is not None and 0 < done.kept < done.read
    assert (tmp_path / "out.jsonl").read_bytes() == expected


@pytest.mark.slow
def test_slurm_scripts(expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/bash\necho localhost\n")):
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_LOG", str(tmp_path / "submitted"))
    job = partial(clean, load("eva"), [tmp_path / "in.jsonl"], tmp_path / "out.jsonl")
    run_slurm(job, 2, tmp_path / "logs", "cpu")
    script = (tmp_path / "logs" / "shares" / "launch_script.slurm").read_text()
    for line in ("#SBATCH --partition=cpu", "#SBATCH --array=0-1", "#SBATCH --time=20:00:00", "#SBATCH --requeue"):
        assert line in script.splitlines()
    submitted = (tmp_path / "submitted").read_text().splitlines()
    assert any("--dependency=afterok:1" in line for line in submitted)  # finish waits for the shares
    assert (tmp_path / "out.jsonl").read_bytes() == expected  # the scripts do what they say
