"""Continuous batching: tokens/s and waiting times of 1 to 64 clients, against one reply at a time and static batches.

    python -m benchmarks.serve [--quick] [--only FAMILY] [--dtype fp32|bf16|int8] [--check]

Random weights: PanGu-α, EVA and Qwen3 with a hidden size of 768, the other families smaller; two threads. Every client sends
its next request when the last is answered; prompts have 16 to 128 tokens and replies 16 to 128. What is measured is the engine
that ``hanmo serve`` runs, without HTTP. Qwen3 is served by transformers' continuous batching too, as ``transformers serve`` runs it.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks import common, llama
from benchmarks.common import Figure
from benchmarks.decode import AnyIds, eva, fill
from hanmo.families import load
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.engine import Engine
from hanmo.generation.settings import Settings
from hanmo.nn.cpu.int8 import to_int8
from hanmo.nn.row_model import evaluating
from hanmo.rows import Context

CLIENTS = (1, 4, 16, 64)
BATCHES = (16, 32, 64)  # sizes of static batches; one is compared with as many clients, since fewer never fill it
LENGTHS = (16, 128)  # of prompts and of replies
SMALL = {
    "transformer_xl": {"hidden_size": 256, "num_layers": 6, "num_heads": 4, "vocab_size": 50_048},
    "glm": {"hidden_size": 256, "num_layers": 6, "num_attention_heads": 4, "max_sequence_length": 512},
}
GOALS = {"one": {"fp32": 2.3, "bf16": 3.5, "int8": 2.3}, "waiting": 1.2, "leaving": 1.0, "alone": 0.9, "peer": 1.0}
PAGE = 32  # tokens of a page of keys and values of transformers


@dataclass(frozen=True)
class Request:
    context: Context
    tokens: int


@dataclass
class Times:
    """Seconds: of all requests, to each first token, and between tokens."""

    whole: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def requests(opened: OpenedModel, count: int) -> list[Request]:
    random, (least, most) = Random(0), LENGTHS
    vocabulary, found = min(30_000, opened.family.config.get_text_config().vocab_size), []
    for _ in range(count):
        ids = [random.randrange(1000, vocabulary) for _ in range(random.randint(least, most))]
        if opened.family.name == "glm":
            ids[-1] = opened.network.config.mask_token_ids[0]
        if opened.family.name == "eva":
            ids[-1] = opened.tokenizer.sep_token_id
        found.append(Request(Context(tuple(ids), tuple(ids)), random.randint(least, most)))
    return found


def settings(request: Request) -> Settings:
    """Sampled. Random weights stop a reply once in tens of thousands of tokens."""
    return Settings(max_new_tokens=request.tokens, seed=1, top_k=50, top_p=0.9, rule_files=False)


def served(opened: OpenedModel, work: Sequence[Request], clients: int) -> Times:
    """All requests, ``clients`` at a time, each followed by the next when it is answered."""
    engine, times = Engine(opened, most_rows=clients), Times()
    waiting: Iterator[Request] = iter(work)
    asked: dict[Any, float] = {}
    last: dict[Any, float] = {}

    def ask(now: float) -> None:
        if (request := next(waiting, None)) is not None:
            asked[engine.add([request.context], settings(request))] = now

    start = time.perf_counter()
    with evaluating(opened.network):
        for _ in range(clients):
            ask(start)
        while not engine.idle:
            changed, now = engine.step(), time.perf_counter()
            for group in changed:
                if group in last:
                    times.between.append(now - last[group])
                else:
                    times.first.append(now - asked[group])
                last[group] = now
                if group.done:
                    if group.error:
                        raise group.error
                    ask(now)
    times.whole = time.perf_counter() - start
    return times


def one_at_a_time(opened: OpenedModel, work: Sequence[Request]) -> float:
    start = time.perf_counter()
    for request in work:
        generate(opened, [request.context], settings(request))
    return time.perf_counter() - start


def static(opened: OpenedModel, work: Sequence[Request], size: int, waits: bool) -> float:
    """Batches of ``size`` in their order; ``waits``: every row goes on to the end of the longest reply."""
    start = time.perf_counter()
    for first in range(0, len(work), size):
        batch = list(work[first : first + size])
        longest = max(request.tokens for request in batch)
        if waits:
            one = settings(Request(batch[0].context, longest))
            generate(opened, [request.context for request in batch], one)
            continue
        engine = Engine(opened)
        with evaluating(opened.network):
            for request in batch:
                engine.add([request.context], settings(request))
            while not engine.idle:
                engine.step()
    return time.perf_counter() - start


def of_transformers(network: Any, work: Sequence[Request], clients: int) -> float:
    """Seconds for the same requests, as many at a time, by transformers' continuous batching."""
    decoding = GenerationConfig(
        do_sample=True, top_k=50, top_p=0.9, max_new_tokens=LENGTHS[1], eos_token_id=-1, pad_token_id=0
    )
    pages = clients * -(-2 * LENGTHS[1] // PAGE) + 8
    manager = network.init_continuous_batching(
        decoding,
        continuous_batching_config=ContinuousBatchingConfig(page_size=PAGE, num_blocks=pages, max_batch_tokens=256),
    )
    manager.start()
    waiting, running = iter(work), 0
    start = time.perf_counter()

    def ask(count: int) -> int:
        asked = list(islice(waiting, count))
        for request in asked:
            manager.add_request(list(request.context.ids), max_new_tokens=request.tokens)
        return len(asked)

    running = ask(clients)
    while running:
        found = manager.get_result(timeout=1)
        if found is None and not manager.is_running():
            raise RuntimeError("transformers' continuous batching has stopped")
        if found is not None and found.is_finished():
            if found.error:
                raise RuntimeError(found.error)
            running += ask(1) - 1
    seconds = time.perf_counter() - start
    manager.stop(block=True)
    return seconds


def measure(opened: OpenedModel, name: str, dtype: str, quick: bool) -> list[Figure]:
    count, sizes, crowds = (24, (16,), (1, 16)) if quick else (64, BATCHES, CLIENTS)
    work = requests(opened, count)
    tokens = sum(request.tokens for request in work)
    generate(opened, [work[0].context], settings(work[0]))  # the first use of a network
    alone = one_at_a_time(opened, work[: count // 4])
    alone *= tokens / sum(request.tokens for request in work[: count // 4])
    waiting = {size: static(opened, work, size, True) for size in sizes}
    leaving = {size: static(opened, work, size, False) for size in sizes}
    times = {clients: served(opened, work if clients > 1 else work[: count // 4], clients) for clients in crowds}
    times[1].whole *= tokens / sum(request.tokens for request in work[: count // 4])
    print(f"\n{name}, {dtype}: {count} requests, {tokens} tokens; peak memory "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")  # fmt: skip
    print(f"{'':34}{'tokens/s':>9}{'first p50':>11}{'p95':>7}{'between p50':>13}{'p95':>7}  (ms)")
    print(f"{'one reply at a time':34}{tokens / alone:9.1f}")
    for what, found in (("static, waits for the longest", waiting), ("static, rows leave", leaving)):
        for size, seconds in found.items():
            print(f"{what + f', {size}':34}{tokens / seconds:9.1f}")
    for clients, one in times.items():
        shown = [
            1000 * value
            for series in (one.first, one.between)
            for value in (median(series), quantiles(series, n=20)[18])
        ]
        print(
            f"{f'{clients} clients':34}{tokens / one.whole:9.1f}{shown[0]:11.0f}{shown[1]:7.0f}{shown[2]:13.1f}{shown[3]:7.1f}"
        )

    def against(what: str, clients: int, peer: float, goal: float) -> Figure:
        label = f"{name} {dtype}, {clients} clients against {what}"
        return Figure.rate(label, tokens / times[clients].whole, tokens / peer, "tokens/s", goal)

    by_peer = []
    if name == "qwen3" and dtype != "int8":
        for clients in times:
            peer = of_transformers(opened.network, work, clients)
            by_peer.append(against("transformers' continuous batching", clients, peer, GOALS["peer"]))
            print(f"{f'transformers, {clients} clients':34}{tokens / peer:9.1f}")
    return [
        *by_peer,
        against("one reply at a time", 16, alone, GOALS["one"][dtype]),  # type: ignore[index]
        *(
            against(f"static batches {what}, at most {clients} rows", clients, _best(found, clients), GOALS[goal])
            for clients in crowds
            if clients >= BATCHES[0]
            for what, goal, found in (
                ("that wait for their longest reply", "waiting", waiting),
                ("whose rows leave", "leaving", leaving),
            )
        ),
        against("one reply at a time", 1, alone, GOALS["alone"]),
    ]  # fmt: skip


def _best(seconds: dict[int, float], most: int) -> float:
    """The least seconds of batches of at most ``most`` rows."""
    return min(found for size, found in seconds.items() if size <= most)


def pangu() -> OpenedModel:
    """PanGu-α of 12 layers of 768: 116 million parameters."""
    family_class = load("pangu")
    config = family_class.config_class(hidden_size=768, num_layers=12, num_heads=12, max_position_embeddings=512)
    return _random(family_class, config)


def small(name: str) -> OpenedModel:
    family_class = load(name)
    config = family_class.config_class(**SMALL[name])
    return _random(family_class, config)


def _random(family_class: Any, config: Any) -> OpenedModel:
    family = family_class(config, AnyIds(config.vocab_size, 50_000))
    return OpenedModel(fill(family_class.network_class(config)), family, family_class.name)


def main() -> int:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="24 requests instead of 64, and fewer sizes")
    parser.add_argument("--only", help="one family")
    parser.add_argument("--dtype", help="one of fp32, bf16, int8")
    options = parser.parse_args()
    torch.set_num_threads(2)
    figures = []
    with TemporaryDirectory() as folder:
        makers: dict[str, Callable[[], OpenedModel]] = {
            "pangu": pangu,
            "eva": lambda: eva(Path(folder))[0],
            "qwen3": llama.qwen3,
            "glm": lambda: small("glm"),
            "transformer_xl": lambda: small("transformer_xl"),
        }
        for name, make in makers.items():
            if options.only not in (None, name):
                continue
            for dtype in ("fp32", "bf16", "int8"):
                if options.dtype not in (None, dtype):
                    continue
                opened = make()
                if dtype == "bf16":
                    opened.network.to(torch.bfloat16)
                if dtype == "int8":
                    to_int8(opened.network)
                figures += measure(opened, name, dtype, options.quick)
    return common.finish(figures, options.check)


if __name__ == "__main__":
    sys.exit(main())
