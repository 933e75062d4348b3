"""``hanmo chat``: talk to a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanmo.cli.common import ApiKey, Decoding, grouped, note, piped_line, split_settings, typed_line
from hanmo.cli.ranks import agreed
from hanmo.errors import ConfigError, HanmoError, UnsupportedError, unknown
from hanmo.processes import main_process

if TYPE_CHECKING:
    from hanmo.cli.remote import RemoteSession
    from hanmo.families.base import OpenedModel
    from hanmo.generation.chat import ChatSession
    from hanmo.generation.settings import Settings

DEMO = Path("runs/demo")
USER, SYSTEM = "Usr >>> ", "Sys >>> "
HELP = """\
clear            start a new conversation
seed             ask for a random seed, and start a new conversation
/set KEY VALUE   change a decoding setting, e.g. /set temperature 0.7; /set alone shows them all
/save FILE       write the conversations so far, one a line (.jsonl, or .txt with tabs)
/help            this
/quit            leave (as do Ctrl-D, and Ctrl-C at your turn); Ctrl-C stops a reply
anything else    is your next turn"""


@grouped
def chat(
    decoding: Decoding,
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [KEY=VALUE]...",
            help="A model: folder or original checkpoint; default: the demo's. Decoding settings (docs/settings.md).",
            show_default=False,
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="A text that goes before the conversation.")] = "",
    limit: Annotated[int | None, typer.Option(help="Tokens of the conversation the model sees.", min=2)] = None,
    system_info: Annotated[
        bool, typer.Option("--system-info", help="Print what was loaded, and how it decodes.")
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="Talk to a server (hanmo serve); MODEL is then the name of one of its models.")
    ] = None,
    api_key: ApiKey = None,
) -> None:
    """Talk to a model, also from a pipe: one line is one turn.

    \b
    Examples:
      hanmo chat
      hanmo chat EVA2.0-base --vocab vocab.txt --rules rules --preset beam
      hanmo chat runs/demo temperature=0.7 --seed 1 < questions.txt
      hanmo chat models/pangu-13b --tensor-parallel 2
      hanmo chat --url http://127.0.0.1:8000
    """
    models, sets = split_settings(rest or [])
    if len(models) > 1:
        raise ConfigError(f"one model, not {', '.join(models)}; settings are key=value")
    if url is not None:
        local = {"limit": limit, "system_info": system_info or None}
        _talk(_remote(url, api_key, models, sets, decoding, local, system))
        return
    if not models and not DEMO.is_dir():
        raise UnsupportedError(
            f"no model given, and there is none in {DEMO}: make one with `hanmo demo`, or name one: hanmo chat MODEL"
        )
    opened, settings = decoding.start(models[0] if models else str(DEMO), sets)
    from hanmo.generation.chat import ChatSession

    session = ChatSession(opened, settings, limit or opened.family.chat_limit, system, decoding.rows)
    if system_info:
        note(describe(opened, settings))
    _talk(session)


def _talk(session: ChatSession | RemoteSession) -> None:
    if sys.stdin.isatty():
        note("Type your turn. /help lists the commands, Ctrl-D leaves.")
    try:
        _Console(session).run()
    except (EOFError, KeyboardInterrupt):
        if sys.stdin.isatty():
            print()


def _remote(
    url: str,
    api_key: str | None,
    models: list[str],
    sets: list[str],
    decoding: Decoding,
    local: dict[str, Any],
    system: str,
) -> RemoteSession:
    """A conversation with a server; ConfigError for options that are about a model of this machine."""
    from hanmo.cli.remote import RemoteSession
    from hanmo.config import load
    from hanmo.generation.settings import Settings

    about = {field.name: getattr(decoding, field.name) for field in fields(decoding) if field.name != "seed"} | local
    for name, value in about.items():
        if value:
            raise ConfigError(f"--{name.replace('_', '-')} is about a model of this machine; leave it or --url out")
    settings = load(Settings, {}, overrides=sets).change(seed=decoding.seed)
    given = {one.partition("=")[0] for one in sets}
    return RemoteSession(url, api_key, models[0] if models else None, settings, given, system)


def describe(opened: OpenedModel, settings: Settings) -> str:
    """The model, its device and software, and the decoding settings."""
    import platform

    import torch
    import transformers

    from hanmo.nn.cpu.int8 import count_parameters

    network, family = opened.network, opened.family
    device = torch.cuda.get_device_name(network.device) if network.device.type == "cuda" else str(network.device)
    facts = {
        "model": opened.source,
        "family": family.name,
        "parameters": f"{count_parameters(network):,}",
        "vocabulary": f"{len(opened.tokenizer):,} tokens",
        "template": family.template_mode or "none",
        "rule files": ", ".join(family.assets.values()) or "none",
        "device": f"{device}, {torch.get_num_threads()} threads",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "decoding": ", ".join(f"{key}={value}" for key, value in asdict(settings).items()),
    }
    return "\n".join(f"{key + ':':12}{value}" for key, value in facts.items())


class _Console:
    """Lines from the keyboard or a pipe, each a command or the user's turn."""

    def __init__(self, session: ChatSession | RemoteSession):
        self._session = session
        self._commands: dict[str, Callable[[str], None]] = {
            "/set": self._set,
            "/save": self._save,
            "/help": lambda _: print(HELP),
        }

    def run(self) -> None:
        """Read lines until /quit; EOFError or KeyboardInterrupt if the user leaves in another way."""
        while True:
            line = self._ask(USER)
            word, _, rest = line.strip().partition(" ")
            try:
                if word == "/quit":
                    return
                if line.strip() == "clear":
                    self._session.clear()
                elif line.strip() == "seed":
                    self._seed()
                elif word.startswith("/"):
                    if word not in self._commands:
                        raise ConfigError(unknown("command", word, [*self._commands, "/quit"]))
                    self._commands[word](rest.strip())
                else:
                    self._reply(line)
            except HanmoError as error:
                note(f"hanmo: {error}")

    def _ask(self, prompt: str) -> str:
        """The next line; from a pipe it is printed too."""
        if sys.stdin.isatty():
            return typed_line(prompt)
        line = piped_line()
        print(f"{prompt}{line}")
        return line

    def _reply(self, line: str) -> None:
        show = partial(print, end="", flush=True) if self._session.streams else None
        print(SYSTEM, end="", flush=True)
        try:
            reply = self._session.reply(line, show)
        except KeyboardInterrupt:  # before the first token: the turn does not count
            print()
            return
        print("" if self._session.streams else reply.text)
        if reply.context is not None and not reply.context.ids:
            note("hanmo: your turn was longer than the tokens that the model sees: it has seen none of it")

    def _seed(self) -> None:
        text = self._ask("Seed >>> ").strip()
        try:
            seed = int(text)
        except ValueError:
            raise ConfigError(f"{text!r} is not a whole number; type seed again") from None
        self._session.reseed(seed)

    def _set(self, text: str) -> None:
        from hanmo.config import load
        from hanmo.generation.settings import Settings

        current: dict[str, Any] = asdict(self._session.settings)
        if not text:
            print("\n".join(f"{key} = {value}" for key, value in current.items()))
            return
        key, _, value = text.replace("=", " ", 1).partition(" ")
        settings = agreed(load(Settings, current, overrides=[f"{key}={value.strip()}"]))
        if settings.seed != current["seed"]:
            self._session.reseed(settings.seed)
        self._session.settings = settings

    def _save(self, text: str) -> None:
        if not text:
            raise ConfigError("/save needs a file name, e.g. /save talk.jsonl")
        count = self._session.save(text) if main_process() else 0
        note(f"{count} conversations in {text}")
