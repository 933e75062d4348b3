"""The tool that plants faults: what it plants, and that a sample is chosen by content."""

import ast

import pytest

from tools.mutants import __main__ as tool
from tools.mutants.mutations import mutants_of

SOURCE = b'''"""Text."""
LIMIT = 3

class Counter:
    size: int = 4

    def grow(self, x, mask):
        """Text 1."""
        if x < 5 and not mask:
            self.size += 1
        torch.roll(x, 2)
        return (x * mask).sum(dim=1), min(x, -2)
'''


def test_every_fault_is_one_change_that_python_reads() -> None:
    found = mutants_of("a.py", SOURCE)
    said = {(one.what, one.before, one.text) for one in found}
    assert {
        ("comparison", "x < 5", "(x <= 5)"),
        ("constant", "5", "6"),
        ("constant", "5", "4"),
        ("sign or not dropped", "not mask", "(mask)"),
        ("statement deleted", "self.size += 1", "pass"),
        ("mask of ones", "x * mask", "(x * torch.ones_like(mask))"),
        ("keyword dropped", "(x * mask).sum(dim=1)", "(x * mask).sum()"),
        ("function swapped", "min(x, -2)", "max(x, -2)"),
        ("arguments swapped", "torch.roll(x, 2)", "torch.roll(2, x)"),
        ("return changed", "(x * mask).sum(dim=1), min(x, -2)", "(min(x, -2), (x * mask).sum(dim=1))"),
    } <= said
    whole = ast.dump(ast.parse(SOURCE))
    for one in found:
        assert ast.dump(ast.parse(one.apply(SOURCE))) != whole, one.key
    assert len({one.key for one in found}) == len(found)


def test_values_that_are_documented_and_texts_are_left_alone() -> None:
    found = mutants_of("a.py", SOURCE)
    assert {one.code_name for one in found} == {"Counter.grow"}
    assert not any("Text" in one.before for one in found)


def test_a_fault_is_known_by_its_content_wherever_it_stands() -> None:
    moved = [one.key for one in mutants_of("a.py", b"import os\n\n" + SOURCE)]
    assert moved == [one.key for one in mutants_of("a.py", SOURCE)]


def test_every_part_has_files_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in tool.PARTS:
        assert len(tool.sample(part, 48, seed=1, known=set())) == 48, part
    monkeypatch.setitem(tool.PARTS, "trainers", ("hanmo/training/trainer.py", "hanmo/training/moved.py"))
    with pytest.raises(FileNotFoundError, match=r"moved\.py"):
        tool.files("trainers")
