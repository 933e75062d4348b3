"""Packed rows: every example is scored as it is alone, and so are the gradients."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hanmo.checkpoints import open_model
from hanmo.data.rows.dataset import RowDataset, make_rows
from hanmo.data.rows.packing import PackedRows, fill_bins
from hanmo.errors import UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.records import PromptResponse, Rejects
from hanmo.rows import Part, collate
from tests.unit.tiny import SENTENCES, tiny
from tests.unit.transformers_models import write_model

PACKING = ("eva", "pangu", "transformer_xl", "glm", "huggingface")
sizes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=80)


@given(sizes)
def test_bins_hold_everything_once_and_never_too_much(sizes: list[tuple[int, int]]) -> None:
    bins = fill_bins(sizes, range(len(sizes)), (10, 11))
    assert sorted(place for places in bins for place in places) == list(range(len(sizes)))
    for places in bins:
        if len(places) > 1:
            assert sum(sizes[place][0] for place in places) <= 10
            assert sum(sizes[place][1] for place in places) <= 11


def test_bins_are_filled() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, 50, (2000,), generator=generator).tolist()
    bins = fill_bins([(size, size) for size in drawn], range(2000), (100, 100))
    assert sum(drawn) / (100 * len(bins)) > 0.97


def test_of_too_many_open_bins_the_fullest_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanmo.data.rows.packing.OPEN", 2)

    def filled(*sizes: int) -> list[list[int]]:
        return fill_bins([(size, size) for size in sizes], range(len(sizes)), (10, 10))

    assert filled(4, 7, 3) == [[0], [1, 2]]  # two may be open
    assert filled(4, 7, 8, 2) == [[0], [1, 3], [2]]  # the third closes the bin of the 8, into which the 2 would go


def test_a_packed_rows_length_is_that_of_its_input(tmp_path: Path) -> None:
    rows = examples(tiny("eva", tmp_path))  # whose answers are shorter than what the encoder reads
    packed = PackedRows(rows, 40, None)
    inputs = [len(packed.row(item).inputs["input_ids"]) for item in range(len(packed))]
    assert list(packed.lengths) == inputs and inputs != [len(packed.row(item).labels) for item in range(len(packed))]


def examples(opened: OpenedModel) -> RowDataset:
    records = [PromptResponse(text[:5], text[5 : 7 + 2 * place]) for place, text in enumerate(SENTENCES)]
    return make_rows(records, opened.family, 64, None, Rejects())


def outcome(opened: OpenedModel, rows: list[Any]) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    """Loss, gradients, and the log-probabilities of the scored tokens in order."""
    batch = collate(rows, opened.family.padding)
    opened.network.zero_grad()
    output = opened.network(**batch)
    output.loss.backward()
    gradients = {n: p.grad.clone() for n, p in opened.network.named_parameters() if p.grad is not None}
    return output.loss.item(), gradients, output.logprob[batch["labels"] != -100]


@pytest.mark.parametrize("name", PACKING)
def test_packed_rows_are_scored_as_they_are_alone(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    rows = [examples(opened).row(place) for place in range(len(SENTENCES))]
    alone = outcome(opened, rows)
    packed = outcome(opened, [opened.family.pack(rows[:3]), opened.family.pack(rows[3:])])  # the second is filled up
    torch.testing.assert_close(packed[2], alone[2], atol=1e-5, rtol=1e-5)
    assert packed[0] == pytest.approx(alone[0], rel=1e-5)
    assert packed[1].keys() == alone[1].keys()
    for parameter, gradient in alone[1].items():
        torch.testing.assert_close(packed[1][parameter], gradient, atol=1e-5, rtol=1e-4, msg=parameter)
    # Without the marks of the examples they would see each other.
    blind = opened.family.pack(rows[:3])
    if name == "huggingface":  # tells examples apart by positions
        blind.inputs["position_ids"] = torch.arange(len(blind.labels))
    for mask in ("attention_mask", "decoder_attention_mask", "reach"):
        if mask in blind.inputs:
            mixed = torch.arange(len(blind.labels)) if mask == "reach" else torch.ones_like(blind.inputs[mask])
            blind.inputs[mask] = mixed
    assert (outcome(opened, [blind])[2] - alone[2][: len(outcome(opened, [blind])[2])]).abs().max() > 1e-3


def test_a_data_set_of_packed_rows(tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path)
    rows = examples(opened)
    packed = PackedRows(rows, 64, seed=1)
    assert len(packed) < len(rows)
    assert sum(packed.lengths) == sum(rows.lengths)
    assert all(len(packed.row(place).labels) == length for place, length in enumerate(packed.lengths))
    assert sorted(name for place in range(len(packed)) for name in packed.where(place).split(", ")) == [
        f"row {place}" for place in range(len(rows))
    ]
    assert PackedRows(rows, 64, seed=1).bins == packed.bins


def test_families_that_cannot_pack_say_so(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = open_model(write_model("mt5", tmp_path), dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match="huggingface packs no rows: packing=false"):
        PackedRows(examples(opened), 64)


def test_what_is_drawn_anew_is_not_packed(tmp_path: Path) -> None:
    rows = examples(tiny("glm", tmp_path))
    rows.drawn = True
    with pytest.raises(UnsupportedError, match=r"drawn anew in every epoch.*packing=false"):
        PackedRows(rows, 64)


def test_several_answers_to_one_context_stay_as_they_are_in_packed_rows(tmp_path: Path) -> None:
    """Blank filling in its general form: contexts with two blanks, answered in turn, of different lengths."""
    opened = tiny("glm", tmp_path)
    mask = opened.family.config.mask_token_ids[0]
    made = [
        [
            Part((3, mask, *range(4, 4 + length), mask), False),
            Part((5, 6), True),
            Part((7, *range(8, 9 + length)), True),
        ]
        for length in (1, 4, 2)
    ]
    rows = [opened.family.row(parts) for parts in made]
    alone = outcome(opened, rows)
    packed = outcome(opened, [opened.family.pack(rows[:2]), opened.family.pack(rows[2:])])
    torch.testing.assert_close(packed[2], alone[2], atol=1e-5, rtol=1e-5)
    for parameter, gradient in alone[1].items():
        torch.testing.assert_close(packed[1][parameter], gradient, atol=1e-5, rtol=1e-4, msg=parameter)


def test_transformers_models_that_mix_examples_are_found(tmp_path: Path) -> None:
    """A recurrent network carries what it has read into the next example."""
    from transformers import MambaConfig, MambaForCausalLM

    from hanmo.families.huggingface.modeling import adopt

    opened = tiny("huggingface", tmp_path)
    rows = [examples(opened).row(place) for place in range(2)]
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=opened.network.config.vocab_size, hidden_size=16, state_size=4, num_hidden_layers=1)
    mamba = adopt(MambaForCausalLM(config))
    mamba(**collate(rows, {}))
    with pytest.raises(
        UnsupportedError, match="MambaForCausalLM lets examples that share a row see each other: packing=false"
    ):
        mamba(**collate([opened.family.pack(rows)], {}))
