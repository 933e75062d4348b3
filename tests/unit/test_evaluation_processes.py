"""Two processes find what one finds, and what a stopped one has found is not lost."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hanmo.checkpoints import save_model
from hanmo.evaluation.engine import cache as stores
from hanmo.evaluation.engine.cache import Store
from hanmo.evaluation.engine.distributed import broadcast, gather, own_device, shard
from hanmo.processes import main_process
from tests import processes
from tests.unit.clue_files import clue_folder
from tests.unit.tiny import tiny


def test_one_process_has_everything() -> None:
    assert main_process() and shard(range(4)) == [0, 1, 2, 3]
    assert broadcast("x") == "x" and gather({1: "a"}) == {1: "a"}
    assert own_device(None) is None and own_device("cpu") == "cpu"


def test_each_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert own_device(None) == "cuda:3" and own_device("cuda") == "cuda:3"
    assert own_device("cpu") == "cpu" and own_device("cuda:0") == "cuda:0"


def test_the_next_run_takes_in_what_other_processes_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(stores, "rank_and_count", lambda rank=rank: (rank, 3))
            patch.setattr(stores, "main_process", lambda rank=rank: rank == 0)
            store = Store(tmp_path, "task", ["x"])
            store.add(rank, f"of {rank}")
            store.close()
    assert len(list(tmp_path.iterdir())) == 3
    next(tmp_path.glob("*.2.jsonl")).open("a").write("[7, ")  # killed in the middle of a line
    store = Store(tmp_path, "task", ["x"])
    assert store.values == {0: "of 0", 1: "of 1", 2: "of 2"}
    assert len(list(tmp_path.iterdir())) == 1
    assert store.fill(4, lambda missing, keep: keep(0, missing)) == ["of 0", "of 1", "of 2", [3]]
    store.close()


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"{}",
        b"3",
        b"[-1, [1.5, 2]]",
        b'["1", [1.5, 2]]',
        b"[1, [1.5]]",
        b"[1, [NaN, 2]]",
        b"[1, [1.5, 0]]",
        b"\xff",
        b"[",
    ],
    ids=str,
)
def test_a_damaged_answer_is_asked_again(tmp_path: Path, line: bytes) -> None:
    stores.store_file(tmp_path, "rows", ["x"]).write_bytes(b"[0, [1.5, 2]]\n" + line + b"\n[2, [0.5, 1]]\n")
    store = Store(tmp_path, "rows", ["x"], stores.Scored)
    assert store.fill(3, lambda missing, keep: [keep(0, (4.0, number)) for number in missing]) == [
        (1.5, 2),
        (4.0, 1),
        (0.5, 1),
    ]
    store.close()
    assert Store(tmp_path, "rows", ["x"], stores.Scored).values == {0: (1.5, 2), 1: (4.0, 1), 2: (0.5, 1)}


@pytest.mark.slow
def test_two_processes_are_as_good_as_one(tmp_path: Path) -> None:
    """CLUE, corrected and published, perplexity and dialogue, over gloo: every score, every generated answer, one output."""
    clue_folder(tmp_path / "clue")
    (tmp_path / "texts.txt").write_text("今天天气真不错\n明天去哪里玩\n谢谢你\n", encoding="utf-8")
    save_model(tiny("pangu", tmp_path / "pangu"), tmp_path / "model")
    (tmp_path / "talks.txt").write_text("你好吗\t很好\n明天去哪里玩\t不去\n谢谢你\t再见\n", encoding="utf-8")
    common = ["--device", "cpu", "--json"]
    sampled = ["--batch-size", "1", "max_new_tokens=8", "do_sample=true"]
    clue = ["eval", "clue", str(tmp_path / "model"), "--data", str(tmp_path / "clue"), "--limit", "128", *common]
    commands: dict[str, list[str]] = {
        "corrected": [*clue, "--tasks", "tnews,c3,cmrc2018"],
        "published": [*clue, "--tasks", "afqmc,cmrc2018", "--published", "--shots", "2"],
        "perplexity": ["eval", "perplexity", str(tmp_path / "model"), str(tmp_path / "texts.txt"), "--text", *common],
        "dialogue": ["eval", "dialogue", str(tmp_path / "model"), str(tmp_path / "talks.txt"), *common, *sampled],
    }
    for name, arguments in commands.items():
        found: list[Any] = []
        for count in ("1", "2"):
            folder = tmp_path / f"{name}{count}"
            line = [sys.executable, "-m", "hanmo", *arguments, "--output", str(folder), "--nproc", count]
            result = processes.run(line, check=True)
            found.append(json.loads(result.stdout))  # printed by one process only
            found[-1]["about"].pop("commit", None)  # somebody may be editing
        assert same(found[0], found[1]), name
        if name == "perplexity":
            continue
        if name == "dialogue":
            one, two = ((tmp_path / f"dialogue{count}" / "generations.jsonl").read_text() for count in (1, 2))
            assert one == two and one.count("\n") == 3
            continue
        one, two = ((tmp_path / f"{name}{count}" / "items.jsonl").read_text().splitlines() for count in (1, 2))
        assert len(one) == len(two) > 1
        assert all(same(json.loads(a), json.loads(b)) for a, b in zip(one, two, strict=True))
        answers = sorted(path.name for path in (tmp_path / f"{name}2" / "answers").iterdir())
        assert answers == sorted(path.name for path in (tmp_path / f"{name}1" / "answers").iterdir())


@pytest.mark.slow
def test_a_mistake_is_told_once_by_several_processes(tmp_path: Path) -> None:
    save_model(tiny("pangu", tmp_path / "pangu"), tmp_path / "model")
    (tmp_path / "bad.jsonl").write_text('{"text": 1}\n', encoding="utf-8")
    arguments = ["eval", "perplexity", str(tmp_path / "model"), str(tmp_path / "bad.jsonl"), "--device", "cpu"]
    one, two = (processes.run([sys.executable, "-m", "hanmo", *arguments, "--nproc", count]) for count in ("1", "2"))
    assert one.returncode == two.returncode == 2
    assert "bad.jsonl:1:" in one.stderr and two.stderr.count("bad.jsonl:1:") == 1 and "Traceback" not in two.stderr


def same(one: Any, other: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == pytest.approx(other, abs=1e-5, rel=1e-5)) if isinstance(one, float) else bool(one == other)
