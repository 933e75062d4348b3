"""What a command loads before it has work to do: the command line starts at once because it is so little."""

from __future__ import annotations

import sys

import pytest

from tests import processes

LIBRARIES = """
names = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print("libraries:", sorted(name for name in names if not name.startswith("_")))
"""
HELP = f"""
import sys
from hanmo.cli import main
sys.argv = ["hanmo", "--help"]
try:
    main()
except SystemExit:
    pass
{LIBRARIES}"""
STAGE_HELP = HELP.replace('"--help"', '"train", "dpo", "--help"')


@pytest.mark.parametrize(
    "program, expected",
    [
        (f"import sys, hanmo\n{LIBRARIES}", ["hanmo"]),
        (HELP, ["annotated_doc", "hanmo", "shellingham", "typer"]),
        (STAGE_HELP, ["annotated_doc", "hanmo", "shellingham", "typer", "yaml"]),
    ],
    ids=["import hanmo", "hanmo --help", "hanmo train dpo --help"],
)
def test_the_start_loads_these_libraries_alone(program: str, expected: list[str]) -> None:
    result = processes.run([sys.executable, "-c", program], check=True)
    assert result.stdout.splitlines()[-1] == f"libraries: {expected}"
