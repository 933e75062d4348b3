"""The script that compares two checkouts: what it takes for equal, what it tells, and that no difference is lost."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests import processes
from tools import compare_checkouts
from tools.compare_checkouts import Item, compare, read_records, renamed, table
from tools.comparing.hashes import digest, facts
from tools.comparing.journey import COMMANDS, DATA, FAMILIES, commands, spellings

ONE = torch.tensor([1.0, 2.0, 3.0, 4.0])
LEAST = torch.nextafter(ONE, torch.tensor(9.0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ONE, LEAST),
        (ONE, ONE.double()),
        (ONE, ONE.view(2, 2)),
        (ONE.bfloat16(), ONE.half()),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (ONE.numpy(), LEAST.numpy()),
        (ONE, ONE.numpy()),
        (np.array([1]), np.array([1], dtype=np.int32)),
        (0.1 + 0.2, 0.3),
        (1, 1.0),
        ([1, 2], [2, 1]),
        ([[1], 2], [[1, 2]]),
        ({"a": ONE}, {"a": LEAST}),
        ("你好", "你好 "),
    ],
)
def test_what_differs_in_any_bit_has_another_digest(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


def test_the_same_bits_have_the_same_digest_however_they_lie_in_memory() -> None:
    square = torch.arange(6.0).view(2, 3)
    assert digest(square.T) == digest(square.T.contiguous()) == digest(square.T.clone().requires_grad_())
    assert digest(np.asfortranarray(square.numpy())) == digest(square.numpy())
    assert digest(torch.tensor(float("nan"))) == digest(torch.tensor(float("nan")))
    assert digest(object()) == digest(object())


def write_run(folder: Path, weights: torch.Tensor, loss: float, time: float) -> dict[str, str]:
    folder.mkdir()
    save_file({"a": weights}, folder / "model.safetensors")
    torch.save({"state": {0: {"step": 3, "average": weights}}}, folder / "optimizer.pt")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss, "time": time}) + "\n")
    (folder / "run.json").write_text(json.dumps({"steps": 1, "losses": [loss], "seconds": time}))
    (folder / "report.html").write_text(f"{time}")
    (folder / "notes.txt").write_text("你好")
    return facts(folder)


def test_facts_of_a_run_name_tensors_and_fields_and_leave_out_times(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", ONE, 0.1, 1.0)
    assert first == write_run(tmp_path / "second", ONE, 0.1, 2.0)
    assert first["metrics.jsonl: 1 loss"] == "0.1" and first["run.json: steps"] == "1"
    third = write_run(tmp_path / "third", LEAST, 0.1 + 1e-16, 1.0)
    assert {name for name in first if first[name] != third[name]} == {
        "model.safetensors: a",
        "optimizer.pt: state.0.average",
        "metrics.jsonl: 1 loss",
        "run.json: losses",
    }


def test_a_page_of_results_is_compared_line_by_line_without_the_commit(tmp_path: Path) -> None:
    (tmp_path / "results.md").write_text("# 结果\n\n- hanmo: 0.1\n- commit: 1a2b3c\n", encoding="utf-8")
    assert facts(tmp_path) == {"results.md: 1": "# 结果", "results.md: 2": "", "results.md: 3": "- hanmo: 0.1"}


def test_what_is_on_one_side_alone_differs_and_so_does_a_failure_on_both() -> None:
    before = {"outcome of a": "failed: no", "outcome of b": "skipped", "x": "1", "y": "2"}
    item = compare("parity/a", before, {"outcome of a": "failed: no", "outcome of b": "skipped", "x": "1", "z": "3"})
    assert (item.compared, item.equal) == (5, 2)
    assert item.differences == [
        "y: 2 before, missing after",
        "z: missing before, 3 after",
        "outcome of a: failed: no (in both)",
    ]


def test_names_are_changed_in_whole_words() -> None:
    renames = {"tests/parity/test_eva.py": "tests/parity/eva/test_all.py", "test_row": "test_rows"}
    assert renamed("outcome of tests/parity/test_eva.py::test_row[a]", renames) == (
        "outcome of tests/parity/eva/test_all.py::test_rows[a]"
    )
    assert renamed("my_tests/parity/test_eva.py::test_row_b", renames) == "my_tests/parity/test_eva.py::test_row_b"


def test_records_of_several_processes_are_put_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {
        "test": "tests/a.py::one",
        "when": "call",
        "outcome": "passed",
        "said": "",
        "calls": ["equal 1 2", "less 3"],
    }
    other = {"test": "tests/b.py::two", "when": "setup", "outcome": "skipped", "said": "Skipped: none", "calls": []}
    (tmp_path / "gw0.jsonl").write_text(json.dumps(entry) + "\n")
    (tmp_path / "gw1.jsonl").write_text(json.dumps(other) + "\n")
    assert read_records(tmp_path, "before") == {
        "parity/tests/a.py": {
            "outcome of tests/a.py::one": "passed",
            "tests/a.py::one #1": "equal 1 2",
            "tests/a.py::one #2": "less 3",
        },
        "parity/tests/b.py": {"outcome of tests/b.py::two": "skipped"},
    }
    assert capsys.readouterr().err == "before: 1 tests: Skipped: none\n"


def test_the_table_counts_by_part_and_names_the_first_differences() -> None:
    items = [Item("journey/eva/sft", 9, ["loss: 1 before, 2 after"] * 7), Item("parity/tests/a.py", 3, [])]
    said = table(items).splitlines()
    assert [line.split()[-3:] for line in said[1:3]] == [["9", "2", "7"], ["9", "2", "7"]]
    assert said[-6:] == ["journey/eva/sft: loss: 1 before, 2 after"] * 5 + ["journey/eva/sft: and 2 more"]


def test_a_chosen_command_brings_what_it_needs(tmp_path: Path) -> None:
    chosen = [one.name for one in commands(tmp_path, ["journey/glm/ppo", "journey/data/clean"])]
    assert chosen == ["journey/glm/reward", "journey/glm/ppo", "journey/data/corpus", "journey/data/clean"]
    assert len(commands(tmp_path, [])) == len(FAMILIES) * len(COMMANDS) + len(DATA)
    assert commands(tmp_path, ["parity"]) == []


def test_another_spelling_is_tried_second() -> None:
    assert spellings("generate m --set a=1 --set b=2") == [
        ["generate", "m", "--set", "a=1", "--set", "b=2"],
        ["generate", "m", "a=1", "b=2"],
    ]
    assert spellings("data corpus c") == [["data", "corpus", "c"]]


RECORDED = """
import torch, numpy, pytest
from torch.testing import assert_close

VALUE = torch.tensor([{value}, 2.0])

def test_a():
    assert_close(actual=VALUE, expected=torch.tensor([1.0, 2.0]))

def test_b():
    assert (VALUE - 1).abs().max() < 2
    assert float(VALUE[0]) == pytest.approx(1.0)

@pytest.mark.skip(reason="none")
def test_c():
    pass
"""


def test_the_plugin_records_what_passes_within_a_tolerance(tmp_path: Path) -> None:
    """The least change of a float: every test passes, and every comparison is told."""
    tests, records = tmp_path / "tests", tmp_path / "records"
    tests.mkdir()
    records.mkdir()
    for who, value in (("before", "1.0"), ("after", "1.0000001")):
        (tests / f"test_{who}.py").write_text(RECORDED.format(value=value))
    environ = compare_checkouts.environment(tmp_path, COMPARE_RECORDS=str(records))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "comparing.recording", "-p", "no:cacheprovider", "tests"]
    processes.run(command, cwd=tmp_path, env=environ, check=True)
    after, before = read_records(records, "").values()
    item = compare(
        "", {renamed(name, {"tests/test_before.py": "tests/test_after.py"}): before[name] for name in before}, after
    )
    assert item.compared == 6
    assert [one.split(":")[2] for one in item.differences] == ["test_a #1", "test_b #1", "test_b #2"]
