"""The tools of ``make check``, and that make, pre-commit and the helper texts agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests import processes
from tools import house

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_code_lines_are_neither_blank_nor_comments() -> None:
    assert house.code_lines('"""Docstring."""\n\n# comment\n    # indented\nx = 1  # remark\n  \n') == 2


def test_lines_are_counted_by_package(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("top.py", "a/one.py", "a/deep/two.py"):
        (tmp_path / name).write_text("x = 1\n\ny = 2\n", encoding="utf-8")
    assert house.by_package(tmp_path) == {"(top)": 2, "a": 4}


def test_circles_are_groups_that_reach_each_other() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "e"}, "e": {"d"}, "f": {"a"}, "g": {"g"}}
    assert house.circles(imports) == [["b", "c"], ["d", "e"], ["g"]]
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_imports_for_type_checking_and_in_functions_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "circular_example"
    package.mkdir()
    (package / "__init__.py").touch()
    first = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circular_example.second import x\n"
    (package / "first.py").write_text(first, encoding="utf-8")
    (package / "second.py").write_text("def f():\n    import circular_example.first\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert house.circles(house.imports_of("circular_example")) == [
        ["circular_example.first", "circular_example.second"]
    ]


def test_long_files_and_functions_are_named(tmp_path: Path) -> None:
    package = tmp_path / "hanmo"
    package.mkdir()
    body = "    x = 1\n"
    (package / "good.py").write_text("def short():\n" + body * 59, encoding="utf-8")
    (package / "bad.py").write_text("\n\ndef long():\n" + body * 60 + "x = 1\n" * 288, encoding="utf-8")
    assert list(house.too_long(package)) == [
        "hanmo/bad.py: 351 lines, at most 350",
        "hanmo/bad.py:3: long has 61 lines, at most 60",
    ]


@pytest.mark.parametrize(("arguments", "lines", "code"), [([], 2, 0), (["--strict"], 2, 1), ([], 1, 1)])
def test_findings_are_errors_when_strict_and_too_many_lines_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], lines: int, code: int
) -> None:
    (tmp_path / "hanmo").mkdir()
    (tmp_path / "hanmo" / "one.py").write_text("x = 1\ny = 2\n", encoding="utf-8")
    monkeypatch.setattr(house, "ROOT", tmp_path)
    monkeypatch.setattr(house, "LINES", lines)
    monkeypatch.setattr(house, "imports_of", lambda _: {"hanmo.one": {"hanmo.one"}})
    assert house.main(arguments) == code


def test_every_target_of_make_has_a_line_in_its_help() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split()
    shown = processes.run(["make", "--no-print-directory"], cwd=ROOT, check=True).stdout.splitlines()
    assert [line.split()[0] for line in shown] == targets
    assert all(len(line.split()) > 2 for line in shown)


def test_pre_commit_runs_the_commands_of_make_check() -> None:
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)[1]
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for hook in repo["hooks"]] == commands
    assert all(hook["pass_filenames"] is False for hook in repo["hooks"])
