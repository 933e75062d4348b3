"""Several files as one data set: what shares mean, and that an epoch is a function of the seed and its number alone."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hanmo.checkpoints import open_model, save_model
from hanmo.cli.train import read_settings
from hanmo.data.rows.dataset import DUMMY_ROW, EpochSampler, RowDataset
from hanmo.data.rows.documents import Pieces, StreamRows, StreamSampler
from hanmo.data.rows.joined import Joined, join
from hanmo.data.rows.mixture import Mixture
from hanmo.data.store.token_store import Store
from hanmo.data.store.tokenize import TokenizerPlace, tokenize
from hanmo.errors import ConfigError
from hanmo.records import Text
from hanmo.rows import Part
from hanmo.training.data_files import find_files, name_files
from hanmo.training.rl.rollout import prompt_order
from hanmo.training.stages import load_stage
from tests.toy import toy_model, toy_rows
from tests.unit.test_training_trainer import differences, trainer, weights
from tests.unit.tiny import SENTENCES, tiny

MIXED = Mixture((10, 4), (0.5, 0.5))


def epochs(mixture: Mixture, first: int, count: int, seed: int = 3) -> Counter[int]:
    """How often each row comes in some epochs."""
    return Counter(item % mixture.total for epoch in range(first, first + count) for item in mixture.order(epoch, seed))


def test_an_epoch_has_the_shares_and_a_small_file_comes_again() -> None:
    """Of 14 rows 7 are of each file: all of one come again, three of the other wait."""
    for epoch in range(5):
        found = epochs(MIXED, epoch, 1)
        assert sum(found[row] for row in range(10)) == sum(found[row] for row in range(10, 14)) == 7
        assert {found[row] for row in range(10, 14)} <= {1, 2, 3} and max(found.values()) <= 3
    assert max(epochs(MIXED, 0, 1)[row] for row in range(10)) == 1
    assert min(epochs(MIXED, 0, 2)[row] for row in range(10)) == 1  # 14 of 10: none is left out for long
    assert epochs(MIXED, 0, 20) == {**dict.fromkeys(range(10), 14), **dict.fromkeys(range(10, 14), 35)}


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 5)), min_size=2, max_size=4),
    st.integers(0, 6),
    st.integers(0, 2**32 - 1),
)
def test_shares_hold_to_a_row_and_no_row_waits_longer_than_a_lap(
    sources: list[tuple[int, float]], epoch: int, seed: int
) -> None:
    counts, shares = zip(*sources, strict=True)
    mixture = Mixture(counts, shares)
    for count, share, quota in zip(counts, shares, mixture.quotas, strict=True):
        exact = share / sum(shares) * sum(counts)
        assert quota == 1 if exact < 1 and quota > exact else abs(quota - exact) <= 1, (count, share)
    assert mixture.rows == sum(mixture.quotas) and len(mixture.items(epoch, seed)) == mixture.rows
    assert len(set(mixture.items(epoch, seed))) == mixture.rows  # a row comes again as another pass of its file
    if mixture.laps < 50:
        assert epochs(mixture, 0, mixture.laps, seed).keys() == set(range(sum(counts)))


def test_without_shares_all_rows_come_once_in_the_order_of_one_file() -> None:
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 2)
    assert [item - 2 * 14 for item in Mixture((10, 4)).order(2, 3)] == torch.randperm(14, generator=generator).tolist()


@pytest.mark.parametrize("group", [1, 4])
def test_the_order_of_an_epoch_needs_neither_the_epochs_before_nor_the_other_processes(group: int) -> None:
    rows = Joined([toy_rows(10), toy_rows(4, seed=2)], (0.5, 0.5))

    def order(epoch: int, seed: int = 1, multiple: int = 1) -> list[int]:
        sampler = EpochSampler(rows.lengths, seed, group, multiple, rows.drawn, rows.mixture)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    assert order(3) == order(3) != order(4) and order(3) != order(3, seed=2)
    assert order(3, multiple=4) == [
        *order(3),
        DUMMY_ROW,
        DUMMY_ROW,
    ]  # two processes with batches of two: the same order
    assert Counter(order(3)) == epochs(rows.mixture, 3, 1, seed=1)


def test_a_killed_run_on_a_mixture_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def run(folder: str, model: Any, **settings: Any) -> Any:
        made = trainer(
            tmp_path / folder,
            model,
            num_train_epochs=3,
            save_strategy="steps",
            save_steps=5,
            lr_scheduler_type="constant",
            **settings,
        )
        made.train_dataset = Joined([toy_rows(12), toy_rows(6, seed=2)], (0.4, 0.6))
        return made

    whole, cut = toy_model(), toy_model()
    run("whole", whole).train()
    run("cut", cut, max_steps=5).train()  # of 5 steps an epoch
    run("cut", cut).train(resume_from_checkpoint=True)
    assert differences(weights(whole), weights(cut)) == 0.0
    other = toy_model()
    run("other", other, seed=9).train()
    assert differences(weights(whole), weights(other)) > 0


def test_joined_rows_are_those_of_their_files() -> None:
    parts = [toy_rows(10), toy_rows(4, seed=2)]
    rows = join(parts, (0.5, 0.5))
    assert len(rows) == 14 and list(rows.lengths) == [*parts[0].lengths, *parts[1].lengths]
    for item in range(14):
        source, place = (parts[0], item) if item < 10 else (parts[1], item - 10)
        assert rows[item][0] == item and rows.where(item) == source.where(place)
        assert torch.equal(rows[item][1].labels, source.row(place).labels)
    assert rows[DUMMY_ROW][0] == DUMMY_ROW and not rows[DUMMY_ROW][1].weights.any()
    assert join(parts[:1], (1.0,)) is parts[0]


def test_what_is_drawn_anew_is_drawn_anew_in_every_pass_of_a_file(tmp_path: Path) -> None:
    """GLM's blanks: a row that comes twice in an epoch has others the second time, and those of its file read alone."""
    opened = tiny("glm", tmp_path)
    sources = []
    for count in (6, 2):
        documents = RowDataset(opened.family)
        for number in range(count):
            documents.append(opened.family.parts(Text(SENTENCES[number % 5]), 1000)[0][-1:], f"{count}")
        sources.append(Pieces(documents, opened.family, 64, opened.family.objectives, seed=5))
    rows = Joined(sources, (0.5, 0.5))
    assert rows.drawn
    sampler = EpochSampler(rows.lengths, 1, drawn=True, mixture=rows.mixture)
    seen = [item for item in sampler if item % 8 >= 6]
    assert sorted(item // 8 for item in seen) == [0, 0, 1, 1]
    for item in seen:
        assert torch.equal(rows[item][1].labels, sources[1].row(item // 8 * 2 + item % 8 - 6).labels)
    assert rows.where(seen[0]).startswith("2 from")


def test_streams_carry_the_shares_and_every_document_comes_before_they_end() -> None:
    """One token a document, one a row: 8 + 2 documents, half and half, are 2 epochs of 5 + 5."""
    family = toy_rows(1).family
    documents = []
    for start, count in ((0, 8), (8, 2)):
        rows = RowDataset(family)
        for number in range(count):
            rows.append([Part((start + number,), True)], "")
        documents.append(rows)
    streams = join([StreamRows(one, family, 1) for one in documents], (0.5, 0.5))
    found = [streams.documents.parts(place)[0].ids[0] for place in streams._order]
    assert streams.laps == 2 and len(found) == 20
    for lap in (found[:10], found[10:]):
        assert sum(id_ < 8 for id_ in lap) == 5
    assert set(found) == set(range(10))


def test_streams_of_several_laps_are_read_on_from_epoch_to_epoch() -> None:
    """12 rows in 2 streams of 6, which 3 epochs of 2 steps read to their ends; then each goes on in the next one's."""
    sampler, found = StreamSampler(12, 2, laps=3), []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    assert found == [[0, 6, 1, 7], [2, 8, 3, 9], [4, 10, 5, 11], [6, 0, 7, 1]]
    with pytest.raises(ConfigError, match="too few"):
        StreamSampler(12, 6, laps=3)


def test_prompts_are_mixed_from_round_to_round() -> None:
    """Rounds of 5 prompts go through epochs of 14."""
    order = list(chain.from_iterable(prompt_order(14, 5, 5 * number, 3, MIXED) for number in range(14)))
    assert Counter(order) == epochs(MIXED, 0, 5)


def test_places_of_data_and_their_shares(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c:0.5"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    for name in ("train.txt", "valid.txt"):
        (tmp_path / "folder" / name).write_text("你好\t再见\n", encoding="utf-8")
    a, b, c = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c:0.5"))

    def named(*data: str) -> tuple[Any, ...]:
        files = name_files(tuple(f"{tmp_path}/{one}" for one in data), lambda place: find_files(place, None), False)
        return files.train, files.valid, files.shares

    assert named("a.jsonl:7", "b.jsonl:3") == ((a, b), (), (7.0, 3.0))
    assert named("a.jsonl", "b.jsonl") == ((a, b), (), ())
    assert named("a.jsonl", "c:0.5") == ((a, c), (), ())  # a file of this name
    folder = tmp_path / "folder"
    assert named("a.jsonl:1e-1", "folder:.9") == ((a, folder / "train.txt"), (folder / "valid.txt",), (0.1, 0.9))
    for data, problem in {
        ("a.jsonl:0.7", "b.jsonl"): "some files have a share and some have none",
        ("a.jsonl:0", "b.jsonl:1"): r"a\.jsonl:0: the share of a file must be a number above 0",
        ("a.jsonl:nan", "b.jsonl:1"): "a number above 0",
        ("a.jsonl:0.7", "d.jsonl:0.3"): r"no such file or folder: .*d\.jsonl$",
        ("a.jsonl:most", "b.jsonl"): r"no such file or folder: .*a\.jsonl:most",
        (): "names no file",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            named(*data)


@pytest.mark.parametrize("data", ["data=[a.jsonl:0.7,b.jsonl:0.3]", "[a.jsonl:0.7, b.jsonl:0.3]"])
def test_a_list_of_data_on_the_command_line(data: str, tmp_path: Path) -> None:
    config = read_settings(load_stage("sft"), "m", data, [str(tmp_path)], None, "none")
    assert config.data == ("a.jsonl:0.7", "b.jsonl:0.3")
    assert read_settings(load_stage("sft"), "m", "data=d", [], None, "none").data == "d"


PAIRS = [
    {"prompt": text, "answers": [{"answer": "很好", "score": 1}, {"answer": "不错", "score": 0}]} for text in SENTENCES
]
STAGES = {
    "sft": [{"prompt": text, "response": "很好"} for text in SENTENCES],
    "pretrain": [{"text": text} for text in SENTENCES],
    "reward": PAIRS,
    "dpo": PAIRS,
    "kto": [{"prompt": text, "response": "很好", "label": bool(place % 2)} for place, text in enumerate(SENTENCES)],
    "grpo": [{"prompt": text} for text in SENTENCES],
    "ppo": [{"prompt": text} for text in SENTENCES],
}


def built(stage: str, model: Path, data: tuple[str, ...], **more: Any) -> Any:
    """A stage before its first step."""
    if stage in ("grpo", "ppo"):
        more["rewards"] = ("tests.unit.alignment_cases:contains",)
    config = load_stage(stage).config(str(model), data, limit=64, **more)
    return load_stage(stage).build(open_model(model, dtype="fp32", device="cpu"), config, config.files())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_reads_a_mixture(stage: str, tmp_path: Path) -> None:
    save_model(tiny("pangu", tmp_path / "vocabulary"), tmp_path / "model")
    for name, count in (("a", 5), ("b", 2)):
        lines = [json.dumps(value, ensure_ascii=False) for value in STAGES[stage][:count]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    more = {"packing": False} if stage == "pretrain" else {}
    mixed = built(stage, tmp_path / "model", (f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl:1"), **more).train
    assert len(mixed) == 7 and mixed.mixture.quotas in ([3, 4], [4, 3])
    joined = built(stage, tmp_path / "model", (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"), **more).train
    assert len(joined) == 7 and joined.mixture.rows == 7 and not joined.mixture.shares


def test_streams_of_transformer_xl_and_stores_are_mixed_too(tmp_path: Path) -> None:
    save_model(tiny("transformer_xl", tmp_path / "vocabulary"), tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "你好", "response": "很好"}) + "\n", encoding="utf-8")
    tokenize(TokenizerPlace(str(tmp_path / "model")), [tmp_path / "a.txt"], tmp_path / "store")
    assert len(Store(tmp_path / "store", open_model(tmp_path / "model", device="cpu").tokenizer)) == len(SENTENCES)
    ready = built("pretrain", tmp_path / "model", (f"{tmp_path}/a.txt:0.5", f"{tmp_path}/store:0.5"))
    assert ready.train.laps == 1 and len(ready.train._order) == 2 * len(SENTENCES)
    sft = built("sft", tmp_path / "model", (f"{tmp_path}/b.jsonl:0.8", f"{tmp_path}/b.jsonl:0.2"), streams=True)
    assert len(sft.train._order) == 2 * sft.train.laps
