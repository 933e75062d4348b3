"""The command line. Importing it loads neither torch nor transformers, so ``hanmo --help`` is instant."""

import codecs
import errno
import importlib
import os
import re
import sys
import time
from importlib import metadata
from io import TextIOWrapper
from typing import Annotated

import typer

import hanmo
from hanmo.cli.common import Command
from hanmo.cli.train import StageCommand, stage_command
from hanmo.errors import ConfigError, HanmoError, out_of_memory, quoted
from hanmo.processes import main_process
from hanmo.training import stages

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="翰墨: Chinese language models end to end, from an original checkpoint or raw text to an aligned, measured, served model.",
    epilog="Start with: hanmo demo",
)

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
PATIENCE = 10  # seconds that processes other than the first wait before they report an error

# group ("": none) -> module -> its commands, "_" for "-"
COMMANDS: dict[str, dict[str, tuple[str, ...]]] = {
    "": {
        "demo": ("demo",),
        "chat": ("chat",),
        "generate": ("generate",),
        "serve": ("serve",),
        "checkpoints": ("convert", "inspect"),
    },
    "reward": {"reward": ("score",)},
    "eval": {
        "eval": ("dialogue", "perplexity", "rouge", "human_prepare", "human_score"),
        "suites": ("clue", "exam", "task", "compare", "table"),
    },
    "data": {"data": ("corpus", "prepare", "contamination", "clean", "recipe", "tokenize", "inspect")},
}
GROUPS = {
    "train": "Train a model.",
    "reward": "Use a reward model.",
    "eval": "Measure a model.",
    "data": "Make and look at data.",
}


def _register() -> None:
    groups = {"": app}
    for name, text in GROUPS.items():
        groups[name] = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=text)
        app.add_typer(groups[name], name=name)
    for name in stages.NAMES:
        groups["train"].command(name, cls=StageCommand)(stage_command(name))
    for group, modules in COMMANDS.items():
        for module, functions in modules.items():
            for function in functions:
                command = getattr(importlib.import_module(f"hanmo.cli.{module}"), function)
                groups[group].command(function.replace("_", "-"), cls=Command)(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hanmo {hanmo.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


_register()


def main() -> None:
    """Entry point of ``hanmo``: a user's mistake is one message and exit code 2, Ctrl-C is exit code 130."""
    # Large tensors on large pages: on a CPU a training step is an eighth quicker. torch reads this once, at start-up.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if isinstance(sys.stdout, TextIOWrapper):  # results contain file names, which may not be UTF-8
        codecs.register_error("hanmo.json", _as_json)
        sys.stdout.reconfigure(errors="hanmo.json")
    try:
        _check_arguments()
        app()
    except SystemExit as done:
        if not done.code:
            _leave_process_group()
        raise
    except HanmoError as error:
        if not main_process():
            time.sleep(PATIENCE)  # the first process usually reports the same, and the others are stopped when it ends
        print(f"hanmo: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a file where a folder must be, no permission
        if error.errno is None:
            raise
        place = error.filename2 or error.filename
        advice = "; change its permissions, or name another place" if error.errno in FORBIDDEN else ""
        print(f"hanmo: {place}: {error.strerror}{advice}" if place else f"hanmo: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        advice = "take a smaller batch, limit or model, or a --dtype of fewer bits"
        print(f"hanmo: out of memory ({quoted(error)}); {advice}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        if (needed := _extra(error)) is None:
            raise
        print(f"hanmo: {needed}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("hanmo: stopped", file=sys.stderr)
        sys.exit(130)
    except BaseException as error:  # raised by the tokenizers package, for example at a rule that never ends
        if type(error).__name__ != "PanicException":
            raise
        print(f"hanmo: the model's tokenizer cannot read this text by its own rules: {error}", file=sys.stderr)
        sys.exit(2)


def _as_json(error: UnicodeError) -> tuple[str, int]:
    r"""As JSON writes characters that the encoding of standard output lacks: \ud83d\ude00; JSON remains JSON."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex(" ", 2)
    return "".join(f"\\u{unit}" for unit in units.split()), error.end


def _extra(error: ImportError) -> str | None:
    """What to install, where a package is missing that one of hanmo's extras brings."""
    names = {(error.name or "").partition(".")[0]} if error.name else set(re.findall(r"[\w-]+", str(error)))
    for line in metadata.requires("hanmo") or []:  # accelerate>=1.15; extra == "train"
        found = re.match(r"""([\w-]+).*extra == ["'](\w+)""", line)
        if found and found[1] in names:
            return f"this needs the package {found[1]}: pip install 'hanmo[{found[2]}]'"
    return None


def _check_arguments() -> None:
    for word in sys.argv[1:]:
        if not word.isprintable() and ascii(word).count("\\udc"):
            raise ConfigError(
                f"{word!a}: not UTF-8; type it in a terminal that uses UTF-8, and rename a file whose name is not"
            )


def _leave_process_group() -> None:
    """Leave the process group, if the command belonged to one.

    A process that exits as a member sometimes aborts: gloo's threads outlive the interpreter they call into. After a
    failure this is not called: leaving could wait for the others, and the exit code is an error anyway.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
