"""What the data set and the chat make of dialogues: the ids that enter the model, against the original's."""

from functools import cache

import pytest

from hanmo.families.eva.family import EvaFamily
from hanmo.families.eva.modeling import EvaConfig
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.records import Dialogue
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("eva")
EVA = PARITY / "eva"
CASES = load(EVA / "dataset.json")
CHATS = load(EVA / "interactive_truncation.json")


@cache
def family(vocab: str) -> EvaFamily:
    return EvaFamily(EvaConfig(), EvaTokenizer(vocab_file=str(EVA / vocab)))


def dialogues(name: str, ratio: float) -> list[Dialogue]:
    lines = (EVA / name).read_text(encoding="utf-8").split("\n")
    return [Dialogue(tuple(line.strip().split("\t"))) for line in lines[: int(ratio * len(lines))]]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['vocab']}-{c['enc_len']}-{c['dec_len']}-{c['ratio']}")
def test_rows_of_the_data_set(case):
    eva = family(case["vocab"])
    made = [eva.parts(record, case["enc_len"], case["dec_len"]) for record in dialogues(case["file"], case["ratio"])]
    assert [line for line, rows in enumerate(made) if rows] == case["kept_lines"]
    rows = [eva.row(parts) for rows in made for parts in rows]
    assert [row.inputs["input_ids"].tolist() for row in rows] == case["contexts"]
    assert [row.inputs["decoder_input_ids"].tolist() for row in rows] == case["targets"]
    assert [row.labels.tolist() for row in rows] == case["labels"]


@pytest.mark.parametrize("chat", CHATS, ids=lambda c: c["id"])
def test_context_of_a_chat(chat):
    """Replies are given as ids: what the model said is never made from its text again."""
    eva = family(chat["vocab"])
    turns: list[str] = []
    ids: list[tuple[int, ...] | None] = []
    for event in chat["events"]:
        if event["user"] == "clear":
            turns, ids = [], []
            continue
        turns.append(event["user"])
        ids.append(None)
        context = eva.context(Dialogue(tuple(turns), ids=tuple(ids)), limit=128)
        prompt = eva.prompt(context.ids)
        assert list(context.full_ids) == event["full_context"]
        assert prompt.inputs["input_ids"].tolist() == event["enc_input_ids"]
        assert prompt.inputs["decoder_input_ids"].tolist() == event["dec_input_ids"]
        turns.append(event["reply"])
        ids.append(tuple(event["reply_ids"]))
