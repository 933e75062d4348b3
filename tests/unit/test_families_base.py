"""What all families share, by hand: attention masks of causal networks, and texts cut where they part."""

from pathlib import Path

import pytest
import torch

from hanmo.errors import UnsupportedError
from hanmo.nn.causal import causal_mask
from hanmo.records import PromptResponse
from hanmo.rows import IGNORE, Part, collate, split_at_difference, unscored
from tests.unit.tiny import NAMES, tiny

HIDDEN = torch.zeros(2, 3, 4)  # (B, T, D); its values do not matter


def test_options_part_where_they_differ() -> None:
    assert split_at_difference([[1, 2, 3], [1, 2, 4, 5]]) == [
        [Part((1, 2), False), Part((3,), True)],
        [Part((1, 2), False), Part((4, 5), True)],
    ]


def test_an_option_that_another_begins_with_keeps_a_token() -> None:
    assert split_at_difference([[1, 2], [1, 2, 3]]) == [
        [Part((1,), False), Part((2,), True)],
        [Part((1,), False), Part((2, 3), True)],
    ]
    with pytest.raises(UnsupportedError, match="predicted from nothing"):
        split_at_difference([[1], [1, 3]])


def test_a_mask_of_queries_and_keys_is_used_as_it_is() -> None:
    mask_BTT = torch.tensor([[[1, 0, 1], [0, 1, 0], [1, 1, 1]], [[0, 0, 1], [1, 1, 0], [0, 1, 1]]])
    for given in (mask_BTT, mask_BTT[:, None], mask_BTT.bool()):
        found = causal_mask(given, HIDDEN, None)
        assert found is not None and found.shape == (2, 1, 3, 3) and found.dtype == torch.bool
        assert torch.equal(found[:, 0], mask_BTT.bool())


def test_a_floating_mask_is_added_to_the_scores_of_earlier_keys() -> None:
    mask_BT = torch.tensor([[0.0, -1.0, 2.0], [0.5, 0.0, -3.0]])
    low = float("-inf")
    expected = [[[a, low, low], [a, b, low], [a, b, c]] for a, b, c in mask_BT.tolist()]
    found = causal_mask(mask_BT, HIDDEN, None)
    assert found is not None and found.tolist() == [[rows] for rows in expected]


def test_packed_examples_and_padding_see_what_they_may() -> None:
    """Numbers of examples, 0 for padding; a padding query sees itself, so that no row is empty."""
    found = causal_mask(torch.tensor([[1, 2, 2], [1, 1, 0]]), HIDDEN, None)
    assert found is not None
    assert found[:, 0].int().tolist() == [[[1, 0, 0], [0, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


def test_rows_that_are_padded_on_the_right_need_no_mask(tmp_path: Path) -> None:
    """Their padding is after every token that could see it: PanGu-α says the same with the mask as without."""
    opened = tiny("pangu", tmp_path)
    texts = [("你好吗", "我很好"), ("明天去哪里玩", "我们去吃火锅。今天天气真不错")]
    rows = [opened.family.row(opened.family.parts(PromptResponse(*text), 48)[0]) for text in texts]
    batch, masked = (collate(rows, padding) for padding in (opened.family.padding, {}))
    assert "attention_mask" not in batch and masked["attention_mask"].sum(1).tolist() == [
        len(row.inputs["input_ids"]) for row in rows
    ]
    with torch.no_grad():
        torch.testing.assert_close(opened.network(**batch).logprob, opened.network(**masked).logprob)
    packed = opened.family.pack(rows)
    assert "attention_mask" in collate([packed], opened.family.padding)  # its examples must not see each other


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_scored_of_a_batch_that_is_unscored(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    row = opened.family.row(opened.family.parts(PromptResponse("你好吗", "我很好"), 48)[0])
    batch = collate([row, row], opened.family.padding)
    labels = batch["labels"].flatten()
    assert batch["scored"].tolist() == [place for place, label in enumerate(labels.tolist()) if label != IGNORE]
    with torch.no_grad():
        found = opened.network(**batch)
        assert torch.equal(found.logprob, opened.network(**batch | {"scored": None}).logprob)  # found there
        assert opened.network(**unscored(batch)).logprob.abs().sum() == 0 < found.logprob.abs().sum()
