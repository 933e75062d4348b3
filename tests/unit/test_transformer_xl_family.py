"""Records as rows of Transformer-XL, by hand."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hanmo.families.transformer_xl import original_format
from hanmo.families.transformer_xl.family import TransformerXLFamily, stream_rows
from hanmo.families.transformer_xl.modeling import TransformerXLConfig, TransformerXLModel
from hanmo.families.weight_map import Size
from hanmo.records import Dialogue, PromptResponse, Text
from hanmo.rows import IGNORE, Part
from hanmo.training.data_files import DataFiles
from hanmo.training.stages import load_stage
from hanmo.training.stages.sft import SftConfig
from tests.unit.tiny import SENTENCES, tiny

STOP = 99


def family() -> TransformerXLFamily:
    """Every letter is a token: a is 1."""
    letters = SimpleNamespace(
        eos_token_id=STOP, encode=lambda text, add_special_tokens: [ord(one) - 96 for one in text]
    )
    return TransformerXLFamily(TransformerXLConfig(), letters)  # type: ignore[arg-type]


def test_pair() -> None:
    [parts] = family().parts(PromptResponse("ab", "cd"), 10)
    assert parts == [Part((1, 2), False), Part((3, 4), True)]
    row = family().row(parts)
    assert row.inputs["input_ids"].tolist() == [1, 2, 3, 4]
    assert row.labels.tolist() == [IGNORE, 3, 4, STOP]
    assert row.weights.tolist() == [0, 1, 1, 1]
    assert row.end == 3


def test_closed_row_is_fed_the_stop() -> None:
    row = family().row([Part((1,), False), Part((2,), True)], feed_stop=True)
    assert row.inputs["input_ids"].tolist() == [1, 2, STOP]
    assert row.labels.tolist() == [2, STOP, IGNORE]
    assert row.end == 2


def test_prefix_is_given() -> None:
    [parts] = family().parts(PromptResponse("a", "cd", prefix="b"), 10)
    assert parts == [Part((1, 2), False), Part((3, 4), True)]


def test_turns_and_system_are_one_prompt() -> None:
    [parts] = family().parts(Dialogue(("a", "b", "c"), system="d"), 20)
    newline = ord("\n") - 96
    assert parts == [Part((4, newline, 1, newline, 2), False), Part((3,), True)]


def test_what_is_too_long() -> None:
    assert family().parts(PromptResponse("abcd", "ef"), 4) == [[Part((3, 4), False), Part((5, 6), True)]]
    [cut] = family().parts(PromptResponse("abcd", "efgh"), 4)
    assert cut == [Part((3, 4), False), Part((5, 6), True), Part((), False)]
    assert family().row(cut).labels.tolist() == [IGNORE, 5, 6, IGNORE]  # no stop where the response goes on
    assert family().parts(PromptResponse("", ""), 4) == []


@given(st.integers(2, 7), st.integers(1, 40))
def test_every_token_of_a_text_is_learned_once(limit: int, length: int) -> None:
    """All but the first, which nothing predicts; then the stop."""
    text = "".join(chr(97 + place % 26) for place in range(length))
    rows = [family().row(parts) for parts in family().parts(Text(text), limit)]
    assert all(len(row.labels) <= limit for row in rows)
    learned = [label for row in rows for label in row.labels.tolist() if label != IGNORE]
    assert learned == [*(ord(one) - 96 for one in text[1:]), STOP]


def test_context() -> None:
    assert family().context(PromptResponse("abc", "d", prefix="e"), 9).ids == (1, 2, 3, 5)
    context = family().context(Text("abcd"), 2)
    assert (context.ids, context.full_ids) == ((3, 4), (1, 2, 3, 4))
    prompt = family().prompt(context.ids)
    assert prompt.stop_ids == (STOP,)
    assert prompt.start.tolist() == [2]


def test_stream_by_hand() -> None:
    """Two documents in rows of three: the stop is a target only, no document sees another."""
    documents = [[Part((1,), False), Part((2, 3, 4), True)], [Part((5,), True)]]
    rows = stream_rows(documents, 3, STOP)
    assert [row.inputs["input_ids"].tolist() for row in rows] == [[1, 2, 3], [4, 5, STOP]]
    assert [row.labels.tolist() for row in rows] == [[2, 3, 4], [STOP, STOP, IGNORE]]
    assert [row.inputs["reach"].tolist() for row in rows] == [[0, 1, 2], [2, 0, 1]]


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 6))
def test_stream_invariants(lengths: list[int], length: int) -> None:
    documents = [[Part(tuple(range(1, size + 1)), True)] for size in lengths]
    rows = stream_rows(documents, length, STOP)
    assert len(rows) == sum(lengths) // length + 1
    assert {len(row.labels) for row in rows} == {length}
    learned = [label for row in rows for label in row.labels.tolist() if label != IGNORE]
    assert learned == [label for size in lengths if size for label in (*range(2, size + 1), STOP)]
    assert max(int(row.inputs["reach"].max()) for row in rows) < length


@pytest.mark.parametrize("size", original_format.SIZES.values())
def test_parameter_counts(size: Size) -> None:
    with torch.device("meta"):
        network = TransformerXLModel(TransformerXLConfig(**size.config))
    assert sum(parameter.numel() for parameter in network.parameters()) == size.parameters


def test_a_size_has_one_name() -> None:
    names = [name for key, size in original_format.SIZES.items() for name in (key, *size.aliases)]
    assert len(set(names)) == len(names)


def test_unknown_configuration_key() -> None:
    from hanmo.errors import ConfigError

    with pytest.raises(ConfigError, match="did you mean num_heads"):
        original_format.read_config({"num_head": 4})


def test_fine_tuning_on_streams_reads_every_pair_once(tmp_path: Path) -> None:
    opened = tiny("transformer_xl", tmp_path)
    pairs = [PromptResponse(text[:3], text[3:]) for text in SENTENCES]
    data = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": one.prompt, "response": one.response}, ensure_ascii=False) for one in pairs]
    data.write_text("\n".join(lines), encoding="utf-8")
    config = SftConfig("m", str(data), streams=True, limit=8)
    rows = load_stage("sft").build(opened, config, DataFiles(data, None, bars=False)).train
    read = [rows.row(place).inputs["input_ids"].tolist() for place in range(len(rows))]
    assert all(len(ids) == 8 for ids in read[:-1])
    stream = " ".join(str(id_) for ids in read for id_ in ids)
    for pair in pairs:
        (parts,) = opened.family.parts(pair, sys.maxsize)
        assert stream.count(" ".join(str(id_) for part in parts for id_ in part.ids)) == 1
