"""Two hundred requests to a server, 1 to 64 at a time, some of them broken off: every reply is what ``generate`` says alone."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo.families.base import OpenedModel
from hanmo.generation import group as groups
from hanmo.generation.decode import generate
from hanmo.generation.draws import Place, Sampler, _key, exponential, placed_sampler
from hanmo.generation.engine import Engine
from hanmo.generation.group import Group
from hanmo.generation.prompts import as_context
from hanmo.generation.settings import Settings
from hanmo.records import Text
from tests.unit.serving import Running, running, sent, until
from tests.unit.tiny import NAMES, TEXT, tiny

pytestmark = pytest.mark.slow
REQUESTS, LIMIT = 200, 128
MARGIN = 1e-4  # of a draw: below it the order of additions decides
WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.3},
    {"temperature": 1.1, "top_k": 9, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {"7": 2.0, "9": -100.0}},
    {"temperature": 0},
    {"use_beam_search": True, "num_beams": 3},
)


@dataclass(frozen=True)
class Asked:
    """A request; ``leaves``: after so many bytes of its answer its client goes."""

    prompt: str
    way: dict[str, Any]
    seed: int
    choices: int
    length: int
    streamed: bool
    leaves: int | None

    @property
    def body(self) -> dict[str, Any]:
        beams = "use_beam_search" in self.way
        fields = {**self.way, "prompt": self.prompt, "seed": self.seed, "n": self.choices, "max_tokens": self.length}
        if self.leaves is not None or self.streamed:
            return {**fields, "stream": True}
        return {**fields, "return_token_ids": True} | ({} if beams else {"logprobs": 0})

    @property
    def settings(self) -> Settings:
        """The same request in the words of ``generate``."""
        way = dict(self.way)
        if way.pop("use_beam_search", False) or way.get("temperature") == 0:
            way = {name: value for name, value in way.items() if name != "temperature"} | {"do_sample": False}
        way["logit_bias"] = tuple((int(id_), bias) for id_, bias in way.get("logit_bias", {}).items())
        return Settings(max_new_tokens=self.length, seed=self.seed, **way)


@dataclass(frozen=True)
class Said:
    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    margin: float = 1.0  # the smallest of its draws


def requests() -> list[Asked]:
    """Every prompt begins with six letters that no other has in this order."""
    random, found = Random(18), list[Asked]()
    while len({one.prompt[:6] for one in found}) < REQUESTS:
        way, prompt = random.choice(WAYS), "".join(random.choices(TEXT, k=6 + random.randrange(30)))
        choices = 1 if "use_beam_search" in way else random.choice((1, 1, 3))
        leaves = random.randrange(1, 900) if random.random() < 0.25 else None
        length = random.randrange(4, 40)
        found.append(Asked(prompt, way, random.randrange(9), choices, length, random.random() < 0.3, leaves))
    return found


def alone(model: OpenedModel, asked: Asked, rows: int | None) -> list[Said]:
    """What ``generate`` says to a request, each choice by itself."""
    margins: list[float] = []

    def watched(seed: int | None, places: Sequence[Place], device: torch.device) -> Sampler:
        draw, keys = placed_sampler(seed, places, device), torch.tensor([_key(seed or 0, one) for one in places])

        def drawn(step: int, samples: Sequence[int], probs: Tensor, count: int) -> Tensor:
            raced = (probs / exponential(keys[list(samples)], step, probs.shape[1])).topk(2).values
            margins.extend((raced[:, 0] / raced[:, 1]).log().tolist())
            return draw(step, samples, probs, count)

        return drawn

    context, found = as_context(model, Text(asked.prompt), LIMIT), list[Said]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "placed_sampler", watched)
        for choice in range(asked.choices):
            margins.clear()
            [reply] = generate(model, [context], asked.settings, places=[Place(0, choice)], rows=rows)
            text = model.family.decode(reply.ids)
            found.append(Said(text, reply.ids, reply.logprobs, min(margins, default=1.0)))
    return found


def ask(server: Running, asked: Asked) -> list[Said] | None:
    """The choices of an answer; None where the client has left before its end."""
    if asked.leaves is not None:
        with closing(sent(server, "/v1/completions", **asked.body)) as connection:
            connection.recv(asked.leaves)
        return None
    answer = server.post("/v1/completions", **asked.body)
    assert answer.status == 200, answer.body
    if asked.streamed:
        texts = [""] * asked.choices
        for choice in (choice for event in answer.events for choice in event["choices"]):
            texts[choice["index"]] += choice["text"]
        return [Said(text) for text in texts]
    return [
        Said(one["text"], tuple(one["token_ids"]), tuple((one["logprobs"] or {}).get("token_logprobs", ())))
        for one in answer.json["choices"]
    ]


class Crowded(Engine):
    """Notes how many rows take part in each step."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.together: list[int] = []

    def step(self) -> list[Group]:
        changed = super().step()
        self.together.append(sum(batch.live for batch in self._batches))
        return changed


@pytest.mark.parametrize("rows", [None, 8], ids=["any rows", "8 rows"])
@pytest.mark.parametrize("name", NAMES)
def test_company_changes_no_reply(name: str, rows: int | None, tmp_path: Path) -> None:
    model, work, random = tiny(name, tmp_path), requests(), Random(1)
    engine, found = Crowded(model, most_rows=64, rows=rows), dict[int, list[Said] | None]()
    order = random.sample(range(REQUESTS), REQUESTS)
    with running({"model": model}, {"model": engine}, limit=LIMIT) as server:
        while len(found) < REQUESTS:
            clients = random.choice((1, 5, 24, 64, 64))
            some = order[len(found) : len(found) + 3 * clients]
            with ThreadPoolExecutor(clients) as pool:
                found |= zip(some, pool.map(lambda number: ask(server, work[number]), some), strict=True)
        until(lambda: engine.idle and not server.server.worker._live)
    assert median(engine.together) >= 8
    whole = {number: said for number, said in found.items() if said is not None}
    assert len(whole) > REQUESTS / 2
    expected = {number: alone(model, work[number], rows) for number in whole}
    for number, said in whole.items():
        for one, right in zip(said, expected[number], strict=True):
            close = rows is None and right.margin < MARGIN
            assert one.text == right.text or close, work[number]
            assert work[number].streamed or one.ids == right.ids or close, work[number]
            if one.ids == right.ids and one.logprobs:
                assert one.logprobs == pytest.approx(right.logprobs, abs=MARGIN)
    scored = [number for number, said in whole.items() if all(one.logprobs for one in said)]
    if rows is not None:
        assert digest(whole[number] for number in scored) == digest(expected[number] for number in scored)
    drawn = [number for number in scored if len(whole[number]) > 1 and work[number].settings.do_sample]
    assert sum(len({one.ids[:1] for one in whole[number]}) > 1 for number in drawn) > len(drawn) / 3
    by_seed = [alone(model, replace(work[scored[0]], way=WAYS[0], seed=seed), rows)[0].ids for seed in range(6)]
    assert len(set(by_seed)) > 1


def digest(replies: Iterable[Sequence[Said]]) -> str:
    return sha256(repr([[(one.ids, one.logprobs) for one in said] for said in replies]).encode()).hexdigest()
