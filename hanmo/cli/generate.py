"""``hanmo generate``: generate from prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanmo.cli.common import Decoding, Json, Model, grouped, piped_line, split_settings, typed_line
from hanmo.errors import ConfigError, HanmoError, UnsupportedError
from hanmo.files import json_text, replacing
from hanmo.processes import main_process
from hanmo.records import Record, Text

if TYPE_CHECKING:
    from hanmo.families.base import OpenedModel
    from hanmo.generation.decode import Generation
    from hanmo.generation.settings import Settings
    from hanmo.rows import Context

STOP = "stop"  # the word that ends the interactive mode


@grouped
def generate(
    model: Model,
    decoding: Decoding,
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT] [KEY=VALUE]...",
            help="The prompt; without it, asks for prompts. Decoding settings (docs/settings.md).",
            show_default=False,
        ),
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="Prompts, one a line: text, or JSON with prompt, text or turns.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File for the results of --input: JSON lines, or plain text if it is a .txt.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts of --input that are decoded together.", min=1)] = 8,
    limit: Annotated[int | None, typer.Option(help="The most tokens of a prompt that the model sees.", min=2)] = None,
    seq_length: Annotated[
        int | None, typer.Option(help="Of models with memory: tokens of a segment; a longer prompt is several.", min=1)
    ] = None,
    mem_length: Annotated[
        int | None, typer.Option(help="Of models with memory: tokens remembered before a segment.", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Generate from one prompt, from a file of prompts, or from prompts that you type (the word stop ends that).

    A prompt that looks like KEY=VALUE goes into a file (--input) or to standard input.

    \b
    Examples:
      hanmo generate runs/demo 你好
      hanmo generate runs/demo --input prompts.txt --output replies.jsonl do_sample=false
      hanmo generate models/txl-2.9b 从前有座山， --seq-length 512 --mem-length 256 max_new_tokens=200 --seed 1
      hanmo generate models/glm-10b-chinese 北京是[MASK]的首都。 --tensor-parallel 2
    """
    given, sets = split_settings(rest or [])
    if len(given) > 1:
        raise ConfigError(f"one prompt, not {', '.join(map(repr, given))}; quote a prompt that has spaces")
    if given and input_file is not None:
        raise ConfigError("give a prompt or --input, not both")
    if output is not None and input_file is None:
        raise ConfigError("--output is for the results of --input; a single result goes to the screen")
    from hanmo.generation.prompts import read_prompts

    prompts = None if input_file is None else list(read_prompts(input_file))
    decoding.refuse_for_text(record for _, record in prompts or ())
    opened, settings = decoding.start(model, sets)
    use_memory(opened, {"--seq-length": seq_length, "--mem-length": mem_length})
    limit = limit or opened.family.chat_limit
    if prompts is not None:
        _file(opened, settings, limit, prompts, output if main_process() else None, batch_size, decoding.rows)
    elif given:
        _one(opened, settings, limit, given[0], as_json, decoding.rows)
    else:
        _interactive(opened, settings, limit, as_json, decoding.rows)


MEMORY = {"--seq-length": "segment_length", "--mem-length": "memory_length"}  # option -> setting of the network


def use_memory(opened: OpenedModel, wanted: dict[str, int | None]) -> None:
    """Change the lengths of segments and memory; UnsupportedError if the model has no memory of segments."""
    config = opened.network.config
    for option, value in wanted.items():
        if value is None:
            continue
        if not hasattr(config, MEMORY[option]):
            raise UnsupportedError(
                f"{option}: {opened.family.name} reads a prompt whole and has no memory of segments; --limit sets the "
                "length of prompts"
            )
        setattr(config, MEMORY[option], value)


def _one(opened: OpenedModel, settings: Settings, limit: int, prompt: str, as_json: bool, rows: int | None) -> None:
    from hanmo.generation.decode import GrowingText, next_context
    from hanmo.generation.decode import generate as decode
    from hanmo.generation.draws import Place
    from hanmo.generation.prompts import as_context

    show = None if as_json else partial(print, end="", flush=True)
    context: Context | None = as_context(opened, Text(prompt), limit)
    answers: list[Generation] = []
    while context is not None:
        growing = GrowingText(opened.family.decode, show)
        places = [Place(0, blank=len(answers))]
        [reply] = decode(opened, [context], settings, growing.take, keep_on_interrupt=True, places=places, rows=rows)
        growing.finish(reply.ids)
        answers.append(reply)
        if not as_json:
            print()
        context = next_context(opened, context, reply)
    if as_json:
        print(json_text(_result(opened, prompt, answers)))


def _interactive(opened: OpenedModel, settings: Settings, limit: int, as_json: bool, rows: int | None) -> None:
    while True:
        try:
            prompt = typed_line(">>> ") if sys.stdin.isatty() else piped_line()
        except EOFError:
            return
        if prompt.strip() == STOP:
            return
        if not prompt.strip():
            continue
        try:
            _one(opened, settings, limit, prompt, as_json, rows)
        except HanmoError as error:
            print(f"hanmo: {error}", file=sys.stderr)


def _file(
    opened: OpenedModel,
    settings: Settings,
    limit: int,
    prompts: list[tuple[str, Record]],
    output: Path | None,
    batch_size: int,
    rows: int | None,
) -> None:
    from hanmo.generation.decode import fill
    from hanmo.generation.prompts import as_context

    def lines() -> Iterator[str]:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            contexts = [as_context(opened, record, limit) for _, record in batch]
            for (prompt, _), answers in zip(batch, fill(opened, contexts, settings, start, rows), strict=True):
                result = _result(opened, prompt, answers)
                yield prompt + result["generation"] if as_text else json_text(result)

    as_text = output is not None and output.suffix == ".txt"
    if output is None:
        for line in lines():
            print(line, flush=True)
        return
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines())
    print(f"{len(prompts)} results in {output}", file=sys.stderr)


def _result(opened: OpenedModel, prompt: str, answers: Sequence[Generation]) -> dict[str, Any]:
    """One answer, or one for every blank, a line each."""
    return {
        "prompt": prompt,
        "generation": "\n".join(opened.family.decode(one.ids) for one in answers),
        "tokens": sum(len(one.ids) for one in answers),
        "score": sum(one.score for one in answers),
        "finished": all(one.finished for one in answers),
    }
