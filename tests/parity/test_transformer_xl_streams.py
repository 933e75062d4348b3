"""The recorded data set: documents, stream items, batches; and the losses on them, memory carried along."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hanmo.families.transformer_xl.family import stream_rows
from hanmo.families.transformer_xl.modeling import TransformerXLConfig
from hanmo.families.transformer_xl.relative import visible
from hanmo.records import PromptResponse, iter_records
from hanmo.rows import IGNORE, Part, Row, collate
from tests.original_streams import crop_row, split_documents, stream_batches
from tests.parity.transformer_xl_models import FOLDER, family, network
from tests.places import load, needs_parity

pytestmark = needs_parity("transformer_xl")
RECORDED = load(FOLDER / "loss" / "cases.json", {})
DOCUMENTS = RECORDED.get("tokenized_documents", [])
ITEMS = RECORDED.get("xl_dataset", {})
LOSSES = RECORDED.get("losses", [])
STOP = 50000
TOLERANCE = 2e-4


def document(recorded: dict[str, Any]) -> list[Part]:
    """Unscored ids, then scored ones."""
    first = recorded["loss_masks"].index(1) if 1 in recorded["loss_masks"] else recorded["length"]
    return [Part(tuple(recorded["tokens"][:first]), False), Part(tuple(recorded["tokens"][first:]), True)]


def rows(order: list[int], length: int) -> list[Row]:
    return stream_rows([document(DOCUMENTS[place]) for place in order], length, STOP)


def test_documents() -> None:
    """The family makes the recorded ids of the data file's records."""
    speaker = family(TransformerXLConfig())
    records = list(iter_records(FOLDER / "loss" / "finetune.jsonl"))
    assert len(records) == len(DOCUMENTS)
    for record, recorded in zip(records, DOCUMENTS, strict=True):
        assert record == PromptResponse(
            **{"prompt": recorded["sample"]["prompt"], "response": recorded["sample"]["text"]}
        )
        [parts] = speaker.parts(record, 10**9)
        assert [id_ for part in parts for id_ in part.ids] == recorded["tokens"]
        assert [int(part.scored) for part in parts for _ in part.ids] == recorded["loss_masks"]


@pytest.mark.parametrize("name", ITEMS)
def test_items(name: str) -> None:
    facts, arrays = ITEMS[name], load_file(FOLDER / "loss" / "xl_dataset_items.safetensors")
    items = rows(facts["document_order"], facts["seq_length"])
    assert len(items) == facts["num_items"]
    same(collate(items, {}), {key: arrays[f"{name}.{key}"] for key in ("text", "target", "loss_mask")})
    mask = seen(items, facts["mem_length"])
    assert torch.equal(mask, arrays[f"{name}.attention_mask_final"].bool())


def seen(items: list[Row], memory: int) -> Tensor:
    reach_BT = torch.stack([row.inputs["reach"] for row in items])
    length = reach_BT.shape[1]
    return visible(length, length + memory, length + memory, None, reach_BT, reach_BT.device)[:, 0]


def same(batch: dict[str, Tensor], recorded: dict[str, Tensor]) -> None:
    """Inputs are the recorded ones; so are targets wherever they are scored, and nowhere else are they scored."""
    flags = recorded["loss_mask"].bool()
    assert torch.equal(batch["input_ids"], recorded["text"])
    assert torch.equal(batch["labels"], torch.where(flags, recorded["target"], IGNORE))
    assert torch.equal(batch["weights"], flags.float())


@pytest.mark.parametrize("case", RECORDED.get("sequential_sampler", []), ids=str)
def test_batches(case: dict[str, Any]) -> None:
    batches = stream_batches(
        case["num_samples"], case["global_batch"], case["start_iter"], case["dp_rank"], case["dp_world"]
    )
    recorded = case["first_12_batches"]
    assert list(itertools.islice(batches, len(recorded))) == recorded


@pytest.mark.parametrize(
    "case", RECORDED.get("split", []), ids=lambda case: f"{case['n']}-{case['split']}-{case['shuffle']}"
)
def test_split(case: dict[str, Any]) -> None:
    parts = split_documents(case["n"], case["split"], case["np_seed"] if case["shuffle"] else None)
    assert parts == [part or [] for part in case["parts"]]


@pytest.mark.parametrize("name", RECORDED.get("gpt2_dataset", {}))
def test_crops(name: str) -> None:
    """The data set of networks without memory: tokens, and what is scored of them in the end."""
    facts, arrays = RECORDED["gpt2_dataset"][name], load_file(FOLDER / "loss" / "gpt2_dataset_items.safetensors")
    length, across = facts["kwargs"]["max_seq_len"], facts["kwargs"].get("sample_across_doc", True)
    documents = [document(recorded) for recorded in DOCUMENTS]
    for place, number in enumerate(facts["indices_recorded"]):
        row = crop_row(documents, length, number, STOP, across)
        tokens = arrays[f"{name}.text"][place]
        flags = arrays[f"{name}.loss_mask_final"][place].bool()
        assert torch.equal(row.inputs["input_ids"], tokens[:-1])
        assert torch.equal(row.labels, torch.where(flags, tokens[1:], IGNORE))


def batches(case: dict[str, Any], items: list[Row]) -> Iterator[dict[str, Tensor]]:
    steps = stream_batches(len(items), case["batch"])
    for step, recorded in zip(steps, case["iterations"], strict=False):
        assert step == recorded["items"]
        yield collate([items[place] for place in step], {})


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case["file"])
@torch.no_grad()
def test_losses(case: dict[str, Any]) -> None:
    arrays = load_file(FOLDER / "loss" / case["file"])
    model = network(case["checkpoint"], memory_length=case["mem_length"])
    items = rows(case["document_order"], case["seq_length"])
    memory: tuple[Tensor, ...] = ()
    for step, batch in enumerate(batches(case, items)):
        recorded = {
            ours: arrays[f"iter{step}.{theirs}"]
            for ours, theirs in (("text", "tokens"), ("target", "labels"), ("loss_mask", "loss_mask"))
        }
        same(batch, recorded)
        # Unscored tokens have recorded losses too.
        everywhere = model(**batch | {"labels": recorded["target"], "weights": None, "scored": None}, memory=memory)
        output = model(**batch, memory=memory)
        losses_BT = arrays[f"iter{step}.per_token_loss"]
        torch.testing.assert_close(-everywhere.logprob, losses_BT, atol=TOLERANCE, rtol=0)
        flags = recorded["loss_mask"].bool()
        torch.testing.assert_close(-output.logprob, losses_BT * flags, atol=TOLERANCE, rtol=0)
        facts = case["iterations"][step]
        assert int(batch["weights"].sum()) == facts["masked_tokens"]
        # A batch of nothing but filling: no number in the original, nothing to learn here.
        expected = facts["loss"] if facts["masked_tokens"] else 0.0
        assert output.loss.item() == pytest.approx(expected, abs=TOLERANCE)
        memory = output.memory
        assert memory[0].shape[1] == facts["mem_len_out"]
