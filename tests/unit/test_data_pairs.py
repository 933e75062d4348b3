"""Pairs from records: as published on the recorded cases, corrected by hand, and as rows."""

import json
from typing import Any

import pytest
import torch

from hanmo.data.rows.pairs import PairCollator, make_pairs, preferences
from hanmo.records import Dialogue, PromptResponse, Rejects, ScoredAnswers, json_record
from tests.places import PARITY, load
from tests.unit.tiny import tiny_eva

CASES = load(PARITY / "clue" / "data_prepare" / "pairs.json", {"hand_cases": []})["hand_cases"]


def as_text(record: dict[str, Any]) -> dict[str, Any]:
    """The original turned every value into text; our reader asks for text."""
    answers = [{"answer": str(answer["answer"]), "score": answer["score"]} for answer in record["answers"]]
    return {**record, "prompt": str(record["prompt"]), "answers": answers}


@pytest.mark.parametrize("case", CASES)
def test_published_walk(case: dict[str, Any]) -> None:
    record = json_record(as_text(case["record"]), "")
    found = [
        {"prompt": pair.chosen.prompt, "prefix": pair.chosen.prefix, "system": pair.chosen.system}
        | {"chosen_answer": pair.chosen.response, "rejected_answer": pair.rejected.response}
        for pair in preferences(record, published=True)
    ]
    assert found == case["reward_pairs"]


def test_best_against_each_worse_one() -> None:
    record = ScoredAnswers("问", (("乙", 2.0), ("丁", 1.0), ("甲", 3.0), ("甲", 0.0), ("", 0.0)))
    found = [(pair.chosen.response, pair.rejected.response, pair.margin) for pair in preferences(record)]
    assert found == [("甲", "乙", 1.0), ("甲", "丁", 2.0)]
    # The published walk pairs 乙 with the better 甲.
    assert ("乙", "甲") in [
        (pair.chosen.response, pair.rejected.response) for pair in preferences(record, published=True)
    ]


def test_answers_as_good_as_the_best_make_no_pair() -> None:
    record = ScoredAnswers("问", (("甲", 1.0), ("乙", 1.0), ("丙", 0.0)))
    assert [(pair.chosen.response, pair.rejected.response) for pair in preferences(record)] == [("甲", "丙")]


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "问", "chosen": "好", "rejected": "坏"},
        {"instruction": "问", "input": "", "chosen": "好", "rejected": "坏"},
        {"conversations": [{"from": "human", "value": "问"}], "chosen": {"from": "gpt", "value": "好"}}
        | {"rejected": {"from": "gpt", "value": "坏"}},
        {"prompt": [{"role": "user", "content": "问"}], "chosen": [{"role": "assistant", "content": "好"}]}
        | {"rejected": [{"role": "assistant", "content": "坏"}]},
        {
            side: [{"role": "user", "content": "问"}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", "好"), ("rejected", "坏"))
        },
    ],
)
def test_forms_of_preferences(value: dict[str, Any]) -> None:
    assert json_record(json.loads(json.dumps(value)), "f:1") == ScoredAnswers("问", (("好", 1.0), ("坏", 0.0)))


def test_sides_and_errors() -> None:
    scored = ScoredAnswers("再问", (("好", 1.0), ("坏", 0.0)), history=("问", "答"))
    (pair,) = preferences(scored)
    assert pair.rejected == Dialogue(("问", "答", "再问", "坏"))
    talk = {"conversations": ["问", "答", "再问"], "chosen": "好", "rejected": "坏"}
    assert json_record(talk, "") == scored
    with pytest.raises(ValueError, match="without what they answer"):
        json_record({"chosen": "好", "rejected": "坏"}, "")


def test_batches() -> None:
    family = tiny_eva().family
    records = [
        ScoredAnswers("你好吗", (("我很好", 1.0), ("我不好", 0.0))),
        ScoredAnswers("你好", (("好", 1.0), ("好", 0.0))),
        PromptResponse("你", "好"),
    ]
    dropped = Rejects()
    pairs = make_pairs(records, family, 32, None, True, False, dropped)
    assert (len(pairs), len(dropped)) == (1, 2)
    batch = PairCollator(family.padding)([pairs[0], pairs[-1]])
    assert batch["pair_weights"].tolist() == [1.0, 0.0]
    chosen, rejected = batch["decoder_input_ids"][0].tolist(), batch["decoder_input_ids"][2].tolist()
    first = int(batch["parts_at"][0])
    assert chosen[:first] == rejected[:first]
    assert chosen[first] != rejected[first]
    ends = batch["ends"]
    fed = batch["decoder_input_ids"][torch.arange(4), ends]
    assert fed.tolist() == [family.tokenizer.sep_token_id] * 4  # the stop token, last of what is fed


def test_a_pair_says_where_it_is_from() -> None:
    """Also where a record makes several: two rows a pair."""
    records = [
        ScoredAnswers("你好吗", (("我很好", 2.0), ("不好", 1.0), ("再见", 0.0)), where="a.jsonl:1"),
        ScoredAnswers("你好", (("好", 1.0), ("再见", 0.0)), where="a.jsonl:2"),
    ]
    pairs = make_pairs(records, tiny_eva().family, 32, None, True, False, Rejects())
    assert [pairs.where(place) for place in range(len(pairs))] == ["a.jsonl:1", "a.jsonl:1", "a.jsonl:2"]
