"""Shared by the commands: option types, each worded once, and the printing of results and remarks."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from hanmo.cli.ranks import TensorParallel, agreed, follow, ranks_of_this_run
from hanmo.errors import ConfigError
from hanmo.files import json_text
from hanmo.records import Record, Text

if TYPE_CHECKING:
    from hanmo.families.base import OpenedModel
    from hanmo.generation.settings import Settings

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
Adapter = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="A LoRA adapter in peft's form, to be merged into the model.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Key of the server's API.", envvar="HANMO_API_KEY", show_default=False),
]
Template = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="An argument of the chat template, like enable_thinking=false; repeatable."),
]
Published = Annotated[bool, typer.Option("--published", help="Reproduce the published behaviour, flaws included.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class Opening:
    """How a model is opened; see ``grouped``."""

    size: Size = None
    config: ConfigFile = None
    vocab: Vocab = None
    adapter: Adapter = None
    dtype: Dtype = None
    device: Device = None
    template: Template = None

    def refuse_for_text(self, records: Iterable[Record]) -> None:
        """ConfigError for arguments of a chat template where all records are running text, which none renders."""
        if self.template and all(isinstance(record, Text) for record in records):
            raise ConfigError(
                f"--template {self.template[0]}: everything here is running text, which no chat template renders; leave it "
                'out, or give conversations, e.g. {"messages": [{"role": "user", "content": "你好"}]} in a file'
            )

    def open(self, model: str, rules: Path | None = None, ranks: int = 1, avoid_fp16: bool = False) -> OpenedModel:
        """Open the model; each of several processes takes its own GPU, unless they split the model into ``ranks``."""
        from hanmo.checkpoints import open_model
        from hanmo.evaluation.engine.distributed import own_device

        device = own_device(self.device) if ranks == 1 else self.device
        return open_model(
            model, size=self.size, config=self.config, vocab=self.vocab, rules=rules, adapter=self.adapter,
            dtype=self.dtype, device=device, tensor_parallel=ranks, template=template_arguments(self.template or ()),
            avoid_fp16=avoid_fp16,
        )  # fmt: skip


@dataclass(frozen=True)
class Decoding(Opening):
    """How a model is opened and how it decodes, for commands that generate; see ``grouped``."""

    rules: RulesFolder = None
    threads: Annotated[int | None, typer.Option(help="Processor threads to compute with.", min=1)] = None
    tensor_parallel: TensorParallel = None
    preset: Annotated[str | None, typer.Option(help="Published settings of the family, by name.")] = None
    seed: Annotated[int | None, typer.Option(help="Random seed; default: a new one each time.")] = None
    rows: Annotated[
        int | None,
        typer.Option(
            help="Decode exactly N rows at a time: a reply then has the same bits in any company.", metavar="N", min=1
        ),
    ] = None
    published: Published = False

    def start(self, model: str, sets: list[str]) -> tuple[OpenedModel, Settings]:
        """The opened model and its decoding settings; starts the processes that the model is split over."""
        ranks = ranks_of_this_run(self.tensor_parallel)
        from hanmo.generation.defaults import decoding_settings

        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        opened = self.open(model, self.rules, ranks, avoid_fp16=not self.published)
        follow()
        return opened, agreed(decoding_settings(opened, self.preset, sets, self.seed, self.published))


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Turn each parameter of a command that is a dataclass into options, one for each field."""
    groups: dict[str, Any] = {name: kind for name, kind in get_type_hints(function).items() if is_dataclass(kind)}

    def options(holder: Any) -> Iterator[inspect.Parameter]:
        hints = get_type_hints(holder, include_extras=True)
        for parameter in inspect.signature(holder).parameters.values():
            kind = hints[parameter.name]
            if is_dataclass(kind):
                yield from options(kind)
            else:
                yield parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(function)
    def command(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind) if one.name in given})
        function(**given)

    command.__signature__ = inspect.Signature(list(options(function)))  # type: ignore[attr-defined]
    return command


def template_arguments(words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a chat template by name: KEY=VALUE, where YAML's numbers, true and false are such and all else is text."""
    import yaml

    from hanmo.config import NO_YAML

    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--template {word}: expected KEY=VALUE, e.g. --template enable_thinking=false")
        if name.strip() in found:
            raise ConfigError(f"--template {word}: {name.strip()} is given twice")
        try:
            value = yaml.safe_load(text)
        except NO_YAML:
            value = text
        found[name.strip()] = value if isinstance(value, bool | int | float | str) else text
    return found


def split_settings(words: list[str]) -> tuple[list[str], list[str]]:
    """Split words into plain ones and settings (KEY=VALUE)."""
    found = [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]
    return [word for word in words if word not in found], found


class Command(TyperCommand):
    """A command that says how an argument is given that begins with a dash."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            unknown: Any = error  # NoSuchOption, which is click's or typer's own by the version of typer
            name = getattr(unknown, "option_name", "--")
            if not name.startswith("--"):
                unknown.message += "; put -- before a text or a file that begins with -, and options before the --"
            elif (setting := _setting(name)) and "KEY=VALUE" in str([one.metavar for one in self.params]):
                unknown.message += f"; a decoding setting is given as KEY=VALUE: {setting}=…"
                unknown.possibilities = None
            raise


def _setting(option: str) -> str | None:
    """The decoding setting that somebody has taken for an option."""
    from hanmo.generation.settings import Settings

    name = option.removeprefix("--").replace("-", "_")
    name = {"max_length": "max_new_tokens", "max_tokens": "max_new_tokens", "beams": "num_beams"}.get(name, name)
    return name if name in {one.name for one in fields(Settings)} else None


def typed_line(prompt: str) -> str:
    """The next line that is typed at a terminal; one that is not UTF-8 is asked for again. EOFError at the end."""
    while True:
        try:
            line = input(prompt)
            line.encode("utf-8")
            return line
        except UnicodeError:  # what is left of a character after backspace, in a terminal that deletes single bytes
            note("hanmo: this line holds half of a character, or is not UTF-8, and was not taken; type it again")


def piped_line() -> str:
    """The next line of standard input without its end and without a byte order mark; EOFError if there is none."""
    try:
        line = sys.stdin.readline()
        line.encode("utf-8")  # in the C locale, bytes that are not UTF-8 arrive as lone surrogates
    except UnicodeError as error:
        raise ConfigError(
            f"standard input is not UTF-8 ({error}); convert it, e.g. iconv -f gb18030 -t utf-8"
        ) from None
    if not line:
        raise EOFError
    return line.rstrip("\r\n").removeprefix("\ufeff")


def results_only() -> AbstractContextManager[object]:
    """Send what libraries print to standard error while a command runs: standard output is for the result."""
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
