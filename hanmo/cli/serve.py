"""``hanmo serve``: answer requests over HTTP."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hanmo.cli.common import ApiKey, Opening, RulesFolder, grouped, split_settings
from hanmo.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from hanmo.generation.engine import Engine
    from hanmo.serving.served import Served

OF_ONE = ("size", "config", "vocab", "adapter")  # options that are about one model's files


@dataclass(frozen=True)
class Listening:
    """Where the server listens, and whom it hears; see ``grouped``."""

    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's need --api-key.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000
    api_key: ApiKey = None
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Further names by which requests may call the server.")
    ] = None


@dataclass(frozen=True)
class Capacity:
    """What is decoded at a time; see ``grouped``."""

    most_rows: Annotated[int, typer.Option(help="Replies that are decoded at the same time.", min=1)] = 16
    rows: Annotated[
        int | None,
        typer.Option(help="Decode exactly so many rows a step: replies equal bit for bit in any company.", min=1),
    ] = None
    cache_gb: Annotated[
        float | None,
        typer.Option(
            help="Memory for keys and values: of the replies that are decoded, and of prompts to go on from. "
            "Default: half of the free memory.",
            min=0.001,
            show_default=False,
        ),
    ] = None
    queue: Annotated[
        int, typer.Option(help="Replies that may wait for a row; further requests are refused.", min=1)
    ] = 256
    threads: Annotated[int | None, typer.Option(help="Processor threads to compute with.", min=1)] = None

    def engines(self, served: Sequence[Served]) -> dict[str, Engine]:
        """An engine for each model; they share the memory."""
        from hanmo.generation.engine import GB, Engine, free_memory

        wanted = None if self.cache_gb is None else int(self.cache_gb * GB)
        cache_bytes = wanted or free_memory(served[0].opened.network.device) // 2
        return {one.name: Engine(one.opened, self.most_rows, self.rows, cache_bytes // len(served)) for one in served}


@grouped
def serve(
    opening: Opening,
    listening: Listening,
    capacity: Capacity,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [KEY=VALUE]...",
            help="Models: folders, original checkpoints or hub ids. Decoding settings of requests that do not give them.",
            show_default=False,
        ),
    ],
    rules: RulesFolder = None,
    preset: Annotated[str | None, typer.Option(help="Published settings of the family, by name.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="The most tokens of a prompt and its reply; default: the model's positions.", min=2),
    ] = None,
    metrics_names: Annotated[str, typer.Option(help="What the names at /metrics begin with, e.g. vllm.")] = "hanmo",
) -> None:
    """Answer requests of OpenAI's API over HTTP: /v1/chat/completions, /v1/completions and more (docs/serving.md).

    \b
    Examples:
      hanmo serve runs/demo
      hanmo serve runs/demo models/pangu-2.6b temperature=0.7 --port 8080
      HANMO_API_KEY=secret hanmo serve runs/demo --host 0.0.0.0
    """
    models, sets = split_settings(words)
    if not models:
        raise ConfigError("no model given: hanmo serve MODEL")
    for option in OF_ONE if len(models) > 1 else ():
        if getattr(opening, option) is not None:
            raise ConfigError(f"--{option} is about the files of one model; serve one, or convert them first")
    if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", metrics_names):
        raise ConfigError(f"--metrics-names {metrics_names}: expected letters, digits and _")
    from hanmo.serving.server import Place, serve_models

    if capacity.threads is not None:
        import torch

        torch.set_num_threads(capacity.threads)
    place = Place(listening.host, listening.port, listening.api_key, tuple(listening.allowed_host or ()))
    place.check()
    served = [
        _open(opening, name, model, rules, preset, sets, limit, capacity.rows) for name, model in _named(models).items()
    ]
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("hanmo.serving").setLevel(logging.INFO)
    serve_models(served, capacity.engines(served), place, capacity.queue, metrics_names)


def _named(models: list[str]) -> dict[str, str]:
    """Models by the name that clients use: of a folder its last part, of the hub the whole id."""
    names = [Path(model).resolve().name if Path(model).exists() else model for model in models]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"two models are called {twice[0]}; rename a folder")
    return dict(zip(names, models, strict=True))


def _open(
    opening: Opening,
    name: str,
    model: str,
    rules: Path | None,
    preset: str | None,
    sets: list[str],
    limit: int | None,
    rows: int | None,
) -> Served:
    from hanmo.generation.defaults import decoding_settings
    from hanmo.serving.served import Served

    opened = opening.open(model, rules, avoid_fp16=True)
    settings = decoding_settings(opened, preset, sets, None, False)
    if settings.published:
        raise UnsupportedError(
            "published: the published decoding mixes the replies of a batch, so a server does not offer it; "
            "use hanmo chat or hanmo generate"
        )
    if rows is not None and settings.num_beams > rows:
        raise ConfigError(
            f"num_beams={settings.num_beams} rows for one reply, but --rows {rows}: give more, or fewer beams"
        )
    return Served(name, opened, settings, limit)
