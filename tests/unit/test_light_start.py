"""What a command loads before it has work to do: the command line starts at once because it is so little."""

import ast
import sys

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
REMOTE = HELP.replace('"--help"', '"chat", "--url", "http://127.0.0.1:9"')
# What typer brings, by its version.
COMMAND_LINE = {"hanmo", "typer", "click", "shellingham", "annotated_doc", "typing_extensions"}
HEAVY = {"torch", "transformers", "numpy", "jinja2", "safetensors", "tokenizers", "accelerate", "peft"}


def libraries(program: str) -> set[str]:
    """The libraries besides Python's own that a program has loaded at its end."""
    result = processes.run([sys.executable, "-c", program], check=True)
    return set(ast.literal_eval(result.stdout.splitlines()[-1].removeprefix("libraries: ")))


def test_import_hanmo_loads_no_library() -> None:
    assert libraries(f"import sys, hanmo\n{LIBRARIES}") == {"hanmo"}


def test_help_loads_the_libraries_of_the_command_line_alone() -> None:
    found = libraries(HELP)
    assert {"hanmo", "typer"} <= found <= COMMAND_LINE


def test_the_help_of_a_stage_loads_no_heavy_library() -> None:
    found = libraries(STAGE_HELP)
    assert "yaml" in found and not found & HEAVY  # yaml: the settings were read from a file


def test_a_chat_with_a_server_loads_no_heavy_library() -> None:
    assert not libraries(REMOTE) & (HEAVY | {"starlette", "uvicorn"})
