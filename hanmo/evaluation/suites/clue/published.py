"""The published CLUE protocol, flaws included, as the recorded cases have it.

Each record becomes one prompt per candidate. A prompt's score is a "perplexity" of all of it: softmax is applied twice,
and the probabilities at a token are compared with that token instead of the next. The lowest wins. Examples in the
prompt are drawn anew for each candidate from the evaluated items themselves, wrong candidates included, and the
prompt is cut where it is too long, which may cut off what is scored. Items are grouped by counting, so that
tasks with an uneven number of candidates fall out of step. Only networks of one stack were evaluated this way.

The same pass gives the score that should have been: the mean of -log p of each token but the first, given those
before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from hanmo.errors import HanmoError, UnsupportedError
from hanmo.evaluation.engine.row_scores import evaluating
from hanmo.evaluation.suites.clue.tasks import ClueTask
from hanmo.evaluation.suites.task import Example
from hanmo.families.base import Family, OpenedModel
from hanmo.metrics import unigram_f1
from hanmo.nn.finite import require_finite
from hanmo.records import Text
from hanmo.rows import Part, collate

SEED = 42
MAX_LENGTH = 512
ANSWER = "答:"
NEW_TOKENS = 100
CHUNK = 64  # positions whose probabilities exist at the same time


@dataclass(frozen=True)
class Item:
    """One prompt. ``candidates`` is the list it is counted in and ``label`` the right one of it."""

    prompt: str
    label: str
    candidates: tuple[str, ...]
    example: int


@dataclass(frozen=True)
class Prompt:
    """An item's prompt with its examples: ``drawn`` are indices into the pool, the first ``kept`` of them are used."""

    text: str
    drawn: tuple[int, ...]
    kept: int


@dataclass(frozen=True)
class Score:
    """What one prompt gets.

    Attributes:
        ppl: as published, in fp32, whose rounding decides between candidates that hardly differ.
        exact: the same without rounding.
        nll: the mean of -log p in nats of all tokens but the first.
    """

    ppl: float
    exact: float
    nll: float


@dataclass(frozen=True)
class Draws:
    """Candidates of tasks that draw wrong labels.

    Attributes:
        candidates: for each record, the right one first.
        labelled: the prompts that examples are drawn from.
        own: drawn here; the original's depended on the order of a set.
    """

    candidates: list[tuple[str, ...]]
    labelled: list[str]
    own: bool


def build_items(task: ClueTask, examples: Sequence[Example], draws: Draws | None = None) -> list[Item]:
    """The prompts of all records, in order; ``draws`` for tasks that draw wrong labels."""
    items: list[Item] = []
    for index, example in enumerate(examples):
        options, label, names = _candidates(task, example, draws.candidates[index] if draws else None)
        for option in options:
            items.append(Item(task.published.template.fill(example.fields, option), label, names, index))
    return items


def _candidates(
    task: ClueTask, example: Example, drawn: tuple[str, ...] | None
) -> tuple[Sequence[str], str, tuple[str, ...]]:
    """What is put into the template, the right one, and the list of candidates."""
    published = task.published
    if drawn is not None:
        return drawn, drawn[0], drawn
    words = tuple(published.words.values())
    if published.only is not None:
        return [example.options[published.only]], published.words[example.label], words
    if words:
        return words, published.words[example.label], words
    options = example.options
    names = (*options, *(f"test{place}" for place in range(len(options), published.filled_to)))
    return options, options[example.gold], names


def draw_candidates(task: ClueTask, examples: Sequence[Example], rng: Random) -> Draws:
    """Wrong labels for every record, and once more for the prompts that examples are drawn from, as published.

    The draws themselves are ours: the original drew from a set, whose order is another in every run.
    """

    def draw() -> list[tuple[str, ...]]:
        found = []
        for example in examples:
            gold = example.options[example.gold]
            others = [option for option in example.options if option != gold]
            found.append((gold, *rng.sample(others, task.published.drawn)))
        return found

    candidates, labelled = draw(), draw()
    prompts = build_items(task, examples, Draws(labelled, [], own=True))
    return Draws(candidates, [item.prompt for item in prompts], own=True)


def read_candidates(path: str | Path, task: ClueTask, examples: Sequence[Example]) -> Draws:
    """The original's draws from a JSON file.

    ``{"tnews": {"candidates": [["right", "wrong", …], …], "labelled": ["prompt", …]}}``: a list of names for each record in
    order, and the prompts that examples are drawn from (needed with shots only).

    Raises:
        HanmoError: the file does not fit the task or the records.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise HanmoError(f"{path}: {error}; expected a JSON file of candidates") from None
    entry = content.get(task.name) if isinstance(content, dict) else None
    entry = entry if isinstance(entry, dict) else {}
    lists = entry.get("candidates")
    if not isinstance(lists, list) or len(lists) != len(examples):
        found = len(lists) if isinstance(lists, list) else "no"
        raise HanmoError(
            f"{path}: {found} lists of candidates for {task.name}, but {len(examples)} records; expected "
            f'{{"{task.name}": {{"candidates": [["right", "wrong", …], …]}}}} with one list for each record'
        )
    for names, example in zip(lists, examples, strict=True):
        gold = example.options[example.gold]
        if not isinstance(names, list) or not names or names[0] != gold or not set(names) <= set(example.options):
            raise HanmoError(
                f"{path}: {names!r} for {example.where}; expected {gold!r} first, then other names of labels"
            )
    return Draws([tuple(names) for names in lists], list(entry.get("labelled", ())), own=False)


def add_shots(
    family: Family, items: Sequence[Item], pool: Sequence[str], shots: int, rng: Random, max_length: int = MAX_LENGTH
) -> list[Prompt]:
    """Examples before each prompt: drawn from the pool, taken in that order up to the first that is too long."""
    known = {text: family.published_length(text + "\n") for text in pool}
    prompts = []
    for item in items:
        drawn = tuple(rng.sample(range(len(pool)), min(len(pool), shots)))
        used, kept = family.published_length(item.prompt), 0
        for index in drawn:
            if known[pool[index]] + used + 2 > max_length:
                break
            used += known[pool[index]]
            kept += 1
        prompts.append(Prompt("\n".join([*(pool[index] for index in drawn[:kept]), item.prompt]), drawn, kept))
    return prompts


def encode(opened: OpenedModel, text: str, max_length: int = MAX_LENGTH) -> list[int]:
    """Ids with the tokenizer's special tokens, cut on its side."""
    return list(opened.tokenizer(text, max_length=max_length, truncation=True)["input_ids"])


def score_prompts(
    opened: OpenedModel, prompts: Sequence[str], max_length: int = MAX_LENGTH, budget: int = 2048
) -> Iterator[tuple[int, Score]]:
    """The score of each prompt with its index, as soon as it is known: prompts of similar length share a batch.

    Args:
        budget: tokens of a batch.

    Raises:
        UnsupportedError: the network is an encoder-decoder, which the protocol does not say how to read.
    """
    pad_id = opened.tokenizer.pad_token_id
    encoded = [encode(opened, prompt, max_length) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    with evaluating(opened.network) as network:
        while order:
            chosen = order[: max(budget // len(encoded[order[0]]), 1)]
            del order[: len(chosen)]
            rows = [opened.family.row([Part(tuple(encoded[index]), False)]) for index in chosen]
            if "decoder_input_ids" in rows[0].inputs:
                raise UnsupportedError(
                    f"{opened.source} is an encoder-decoder: the published protocol scores prompts by a network of one "
                    "stack; evaluate without --published"
                )
            batch = collate(rows, opened.family.padding)
            del batch["labels"], batch["weights"]
            logits_BTV = network(**{name: value.to(network.device) for name, value in batch.items()}).logits
            for index, logits_TV in zip(chosen, logits_BTV, strict=True):
                score = judge(logits_TV, torch.tensor(encoded[index], device=logits_TV.device), pad_id)
                require_finite([score.nll], network)
                yield index, score


def judge(logits_TV: Tensor, ids_T: Tensor, pad_id: int | None) -> Score:
    """Score a prompt from its logits; surplus logits on the right are padding.

    Where the pad token also ends texts (GLM), their end is left out of the perplexity, as published.
    """
    if logits_TV.device.type == "mps":  # has no float64
        logits_TV, ids_T = logits_TV.cpu(), ids_T.cpu()
    length = len(ids_T)
    kept_T = torch.ones_like(ids_T, dtype=torch.bool) if pad_id is None else ids_T != pad_id
    rounded, twice, nll = [], [], []
    for start in range(0, length, CHUNK):
        logits_cV = logits_TV[start : min(start + CHUNK, length)].float()
        labels_c1 = ids_T[start : start + CHUNK, None]
        rounded.append(logits_cV.softmax(-1).softmax(-1).gather(-1, labels_c1)[:, 0].log())
        total_c1 = logits_cV.double().logsumexp(-1, keepdim=True)
        places_c = torch.arange(start, start + len(logits_cV), device=ids_T.device)
        prob_c = (logits_cV.gather(-1, labels_c1) - total_c1).exp()[:, 0]
        # log of the sum of exp(p): what exceeds 1 in each term is small and summed by itself, so that fp32 is enough.
        surplus_c = (logits_cV - total_c1.float()).exp().expm1().sum(-1, dtype=torch.float64)
        twice.append((logits_cV.shape[-1] + surplus_c).log() - prob_c)
        ahead_n = places_c[places_c + 1 < length]
        nll.append((total_c1[: len(ahead_n)] - logits_cV[: len(ahead_n)].gather(-1, ids_T[ahead_n + 1][:, None]))[:, 0])
    ppl = torch.exp(-torch.cat(rounded)[kept_T].sum() / kept_T.sum()).item()
    exact = torch.cat(twice)[kept_T].mean().exp().item()
    return Score(ppl, exact, torch.cat(nll).mean().item())


def accuracy(ppls: Sequence[float], items: Sequence[Item]) -> tuple[list[bool], int]:
    """Whether each group was right, and the number of items of an incomplete last group, which is dropped.

    A group ends where the number of an item says so by the length of its own list; the lowest of the scores since
    the last end wins, the first of equal ones.

    Raises:
        HanmoError: the label of a group's last item is not in its list, where the original stopped, too.
    """
    right, collected = [], []
    for number, (ppl, item) in enumerate(zip(ppls, items, strict=True)):
        collected.append(ppl)
        if number % len(item.candidates) != len(item.candidates) - 1:
            continue
        if item.label not in item.candidates:
            raise HanmoError(
                f"the published grouping has fallen out of step: {item.label!r} is not among {', '.join(item.candidates)}, "
                "where the original stops as well; evaluate without --published"
            )
        right.append(collected.index(min(collected)) == item.candidates.index(item.label))
        collected = []
    return right, len(collected)


def answer(opened: OpenedModel, prompt: str) -> str:
    """What follows the first "答:" in prompt and reply, decoded together; greedy, 100 tokens.

    As published, a model whose prompts carry no special tokens is not stopped by its end token either.
    """
    family, network = opened.family, opened.network
    text = prompt + family.blank
    context = family.context(Text(text), sum(map(len, text.splitlines(keepends=True))) * 4 + 16).ids
    start = family.prompt(context)
    stops = start.stop_ids if family.blank else ()
    said: list[int] = []
    with evaluating(network):
        inputs = {name: value[None].to(network.device) for name, value in start.inputs.items()}
        logits_1qV, state = network.prefill(**inputs)
        while len(said) < NEW_TOKENS:
            token = int(logits_1qV[0, -1].argmax())
            if token in stops:
                break
            said.append(token)
            position_1P1 = (start.start + (len(said) - 1) * start.step)[None, :, None].to(network.device)
            logits_1qV = network.step(torch.tensor([[token]], device=network.device), position_1P1, state)
    spelled = [id_ for id_ in said if id_ not in family.unused_ids]  # rows of the embedding that stand for no token
    return after_answer(family.decode([*start.inputs["input_ids"].tolist(), *spelled]))


def after_answer(text: str) -> str:
    """The published reading of an output: what follows the first "答:", unstripped; nothing if there is none."""
    return text.partition(ANSWER)[2]


def token_f1(family: Family, prediction: str, references: Sequence[str]) -> tuple[float, bool]:
    """The best F1 over bags of token ids of the references, and whether the prediction equals one of them."""

    def bag(text: str) -> list[str]:
        return list(map(str, family.tokenizer.encode(text, add_special_tokens=False)))

    return unigram_f1([bag(prediction)], [list(map(bag, references))]), prediction in references
