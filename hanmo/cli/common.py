"""What the commands share: option types with one wording each, and how results and mistakes are printed."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

import typer

from hanmo.errors import ConfigError
from hanmo.files import json_text
from hanmo.locks import holding_inside

if TYPE_CHECKING:
    from hanmo.families.base import OpenedModel

Model = Annotated[str, typer.Argument(help="A model: folder, original checkpoint, or hub id.", show_default=False)]
Size = Annotated[
    str | None, typer.Option(help="Released size, where the files alone do not tell it, e.g. eva2.0-base.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="The original's model configuration (JSON).")]
Vocab = Annotated[Path | None, typer.Option(help="Vocabulary file, where none lies beside the weights.")]
RulesFolder = Annotated[Path | None, typer.Option("--rules", help="Folder of score rules (antonyms) to decode with.")]
Dtype = Annotated[
    str | None, typer.Option(help="fp32, bf16, fp16, or int8 (CPU only); default: what suits the device.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: cuda if there is one, else cpu.")]
Published = Annotated[bool, typer.Option("--published", help="Reproduce the published behaviour, flaws included.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Sets = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Decoding settings (docs/settings.md).", show_default=False),
]

Processes = Annotated[int, typer.Option("--nproc", help="Processes on this machine, e.g. one for each GPU.", min=1)]


@dataclass(frozen=True)
class Opening:
    """How a model is opened, by commands that evaluate one; see ``grouped``."""

    size: Size = None
    config: ConfigFile = None
    vocab: Vocab = None
    dtype: Dtype = None
    device: Device = None

    def open(self, model: str, rules: Path | None = None) -> OpenedModel:
        """Of several processes each takes a GPU of its own, where there are any."""
        from hanmo.checkpoints import open_model
        from hanmo.evaluation.engine.distributed import own_device

        return open_model(
            model,
            size=self.size,
            config=self.config,
            vocab=self.vocab,
            rules=rules,
            dtype=self.dtype,
            device=own_device(self.device),
        )


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """A command some of whose parameters are dataclasses: on the command line, their fields are options like others."""
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind  # type: ignore[assignment]
        options = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if one.default is MISSING else one.default,
                annotation=options[one.name],
            )
            for one in fields(kind)
        ]

    @functools.wraps(function)
    def command(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        function(**given)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def exclusive_output(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: while the command runs, no other run may write to its ``output`` folder, if it is given one."""

    @functools.wraps(command)
    def alone(**given: Any) -> None:
        output = given["output"]
        if output is None or given["nproc"] > 1:  # the processes that it starts lock it themselves
            command(**given)
            return
        with holding_inside(output):
            command(**given)

    return alone


def start_processes(count: int) -> NoReturn:
    """Run this command once more in ``count`` processes instead of this one, and end as they end."""
    launch(count, without(sys.argv[1:], "--nproc"))


def launch(count: int, arguments: list[str]) -> NoReturn:
    """Run ``hanmo`` with these arguments in so many processes of this machine, and end as they end."""
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks say themselves what failed
    parsed = run.parse_args(["--standalone", f"--nproc-per-node={count}", "-m", "hanmo", *arguments])
    try:
        run.run(parsed)
    except ChildFailedError as error:
        sys.exit(max(failure.exitcode for failure in error.failures.values()))
    sys.exit(0)


def without(arguments: list[str], *options: str) -> list[str]:
    """Arguments less some options and their values."""
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif name in options:
            skip = not equals
        else:
            kept.append(argument)
    return kept


def split_settings(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that are no settings, and those that are: KEY=VALUE."""
    found = [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]
    return [word for word in words if word not in found], found


def piped_line() -> str:
    """The next line of standard input, without its end and without the mark that some programs begin a file with.

    Raises:
        EOFError: there is none.
    """
    try:
        line = sys.stdin.readline()
        line.encode("utf-8")  # where the locale is C, bytes of other encodings are read as halves of characters
    except UnicodeError as error:
        raise ConfigError(
            f"standard input is not UTF-8 ({error}); convert it, e.g. iconv -f gb18030 -t utf-8"
        ) from None
    if not line:
        raise EOFError
    return line.rstrip("\r\n").removeprefix("\ufeff")


def results_only() -> AbstractContextManager[object]:
    """While a command works: what libraries print goes to standard error, for standard output is the result's."""
    return redirect_stdout(sys.stderr)


def emit(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result: as one JSON document for machines, or with ``show`` for people."""
    if as_json:
        print(json_text(result, indent=2))
    else:
        show(result)


def note(message: str) -> None:
    """A remark for people on standard error, so that it never mixes with results."""
    print(message, file=sys.stderr)
