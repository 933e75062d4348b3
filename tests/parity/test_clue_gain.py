"""A model that has learned a task: the corrected protocol shows it, the published one hides it.

A small network with random weights learns TNEWS from its training split, in our template and in the published one.
"""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hanmo.evaluation.results.result import Result
from hanmo.evaluation.results.statistics import compare, interval
from hanmo.evaluation.suites.clue.suite import clue_suite
from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Options
from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt
from hanmo.records import Text
from hanmo.rows import Row, collate
from tests.places import DATA, needs_data

pytestmark = [needs_data, pytest.mark.slow]
TASK = all_tasks()["tnews"]
EPOCHS, BATCH, QUESTIONS = 10, 32, 200


def model() -> OpenedModel:
    """A GPT-2 of two layers whose tokens are the characters of the training split."""
    texts = {text for example in read_split(TASK, DATA / "clue", "train") for text in example.fields.values()}
    characters = sorted(
        {*"".join(texts), *TASK.template.text, *TASK.published.template.text, *"".join(TASK.labels.values())}
    )
    ids = {token: number for number, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    words = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(ids), n_embd=64, n_layer=2, n_head=4, eos_token_id=1, bos_token_id=1)
    return OpenedModel(adopt(GPT2LMHeadModel(config)), HuggingfaceFamily(config, tokenizer), "a small GPT-2")


def training_rows(opened: OpenedModel) -> list[Row]:
    """The right label after our template, and of every fourth record the published prompt; all rows weigh the same."""
    family, rows = opened.family, []
    for number, example in enumerate(read_split(TASK, DATA / "clue", "train")):
        gold = example.options[example.gold]
        right, _ = family.cloze(TASK.template.around(example.fields)[0], [gold, example.options[example.gold - 1]])
        rows.append(family.row(right, stop=False))
        if number % 4 == 0:
            (whole,) = family.parts(Text(TASK.published.template.fill(example.fields, gold)), 128)
            rows.append(family.row(whole, stop=False))
    return [replace(row, weights=row.weights / row.weights.sum()) for row in rows]


def train(opened: OpenedModel) -> None:
    rows, rng = training_rows(opened), Random(0)
    steps = EPOCHS * -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(opened.network.parameters(), lr=4e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    opened.network.train()
    for _ in range(EPOCHS):
        rng.shuffle(rows)
        for start in range(0, len(rows), BATCH):
            opened.network(**collate(rows[start : start + BATCH], opened.family.padding)).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def measured(opened: OpenedModel, cache: Path, published: bool) -> Result:
    options = Options(first=QUESTIONS, published=published, limit=128)
    return evaluate(
        opened, clue_suite(DATA / "clue", [TASK.name]), options, cache, lambda what: lambda done, total: None
    )


def test_the_corrected_protocol_shows_what_the_published_one_hides(tmp_path: Path) -> None:
    opened = model()
    before = {published: measured(opened, tmp_path, published) for published in (False, True)}
    train(opened)
    after = {published: measured(opened, tmp_path, published) for published in (False, True)}
    for published, result in after.items():
        found = {name: f"{sum(values) / len(values):.3f}" for name, values in result.tasks[0].right.items()}
        start = {n: f"{sum(v) / len(v):.3f}" for n, v in before[published].tasks[0].right.items()}
        print(
            "published" if published else "corrected", "before", start, "after", found, "chance", result.tasks[0].chance
        )
    (learned,) = after[False].tasks
    gain = compare(before[False].tasks[0].right[learned.reading], learned.right[learned.reading])
    assert gain.p < 0.001 and interval(learned.right[learned.reading])[0] > learned.chance
    (hidden,) = after[True].tasks
    low, high = interval(hidden.right["published"])
    assert low < hidden.chance < high or hidden.value < hidden.chance  # as good as guessing
    assert compare(before[True].tasks[0].right["published"], hidden.right["published"]).p > 0.05
