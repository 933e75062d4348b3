"""Runs commands of hanmo one after the other, each in a process of its own, with what all of them import loaded once.

    PYTHONPATH=CHECKOUT:tools python -m comparing.runner PLAN

Of a checkout it uses nothing but ``python -m hanmo``. PLAN is a JSON list; of each command the first spelling that is not
refused counts. What a command prints goes into its folder, as printed.json where it is JSON and as printed where not; its messages
go to a file beside the folder, and its exit code into a file of all.
"""

import contextlib
import importlib
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# What the commands import anyway; only a head start.
LOADED = (
    "numpy", "torch", "transformers", "transformers.trainer", "transformers.modeling_utils", "accelerate", "sentencepiece",
    "safetensors.torch", "rich.progress", "torch.utils.tensorboard",
)  # fmt: skip
REFUSED = 2  # exit code of an option or a setting that is not known


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.argv = sys.argv[:1]
    import hanmo  # before transformers, as in a process that begins with hanmo

    if not Path(hanmo.__file__).is_relative_to(plan["checkout"]):
        sys.exit(f"compare: hanmo is imported from {hanmo.__file__}, not from {plan['checkout']}")
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    codes = {}
    for command in plan["commands"]:
        start = time.monotonic()
        codes[command["name"]] = code = _first_accepted(command)
        print(f"{plan['who']}: {command['name']}: {time.monotonic() - start:.1f} s, exit code {code}", file=sys.stderr)
    Path(plan["codes"]).write_text(json.dumps(codes), encoding="utf-8")


def _first_accepted(command: dict[str, Any]) -> int:
    folder, code = Path(command["folder"]), REFUSED
    folder.mkdir(parents=True)
    for words in command["spellings"]:
        code = _run(words, folder)
        if code != REFUSED:
            break
    printed = folder / "printed"
    text = printed.read_text(encoding="utf-8")
    with contextlib.suppress(ValueError):
        json.loads(text)
        printed.rename(folder / "printed.json")
    return code


def _run(words: list[str], folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        for stream, path, mode in (
            (1, folder / "printed", os.O_TRUNC),
            (2, folder.with_name(f"{folder.name}.stderr"), os.O_APPEND),  # why each spelling was refused
        ):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | mode), stream)
        sys.argv = ["hanmo", *words]
        runpy.run_module("hanmo", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's is cleaned up twice


if __name__ == "__main__":
    main()
