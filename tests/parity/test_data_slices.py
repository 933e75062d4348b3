"""Real slices of the published data through prepare and clean: every record arrives, splits do not leak."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hanmo.data.cleaning.clean import clean
from hanmo.data.cleaning.recipe import build, load
from hanmo.data.leaks import find_leaks
from hanmo.data.prepare import prepare
from hanmo.data.sources.reading import Reading
from hanmo.data.splits import Shares
from hanmo.records import Rejects
from tests.places import DATA, needs_data

pytestmark = [needs_data, pytest.mark.slow]
Adapter = Callable[[Path, Path], Path]


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n")[:-1]


def _json_lines(path: Path, values: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n", encoding="utf-8")
    return path


def _weibo(source: Path, folder: Path) -> Path:
    """The slice has neither abstracts nor likes: the text is the article, and of every comment nothing is known."""
    posts = map(json.loads, _lines(source))
    made = [
        {"article": post["text"], "abstract": "", "comments": [[c["text"], 0] for c in post["comments"]]}
        for post in posts
    ]
    return _json_lines(folder / "weibo.json", made)


def _baike(source: Path, folder: Path) -> Path:
    """A question is a title, the value of the triple is the answer."""
    found = map(json.loads, _lines(source))
    made = [{"title": e["question"], "desc": "", "answer": e["answer"].split(" ||| ")[-1]} for e in found]
    return _json_lines(folder / "baike.json", made)


SLICES: list[tuple[str, str, Adapter | None]] = [
    ("weibo", "sft_reward/weibo_news_comments/checked_news_comments.jsonl.gz", _weibo),
    ("baike", "sft_reward/baike/kgclue_train.jsonl.gz", _baike),
    ("zhidao", "sft_reward/zhidao/baoxianzhidao_filter.csv.gz", None),
    ("couplets", "sft_reward/couplet/train", None),
    ("couplets", "sft_reward/couplet/test", None),
    ("classical", "sft_reward/classical_modern", None),
    ("poetry", "sft_reward/poetry", None),
    ("kdconv", "kdconv/data", None),
    ("lccc", "dialogue/lccc_base/LCCC-base_valid.json.gz", None),
    ("lccc", "dialogue/cdial_gpt_toy/toy_data.json", None),
    ("crosswoz", "dialogue/crosswoz/val.json.zip", None),
    ("sharegpt", "dialogue/smile/smile_dialogs.jsonl.gz", None),
    ("sharegpt", "instruct/sharegpt_zh_1k.jsonl.gz", None),
    ("alpaca", "instruct/alpaca_zh.json.gz", None),
    ("dpo", "preference", None),
]


@pytest.mark.parametrize(("source", "name", "adapter"), SLICES, ids=[f"{s}-{Path(n).name}" for s, n, _ in SLICES])
def test_slice_is_prepared_without_leaks(source: str, name: str, adapter: Adapter | None, tmp_path: Path) -> None:
    place = DATA / name
    if not place.exists():
        pytest.skip(f"no {name}")
    if adapter:
        place = adapter(place, tmp_path)
    reading = Reading(shares=Shares(0.05, 0.05), rejects=Rejects())
    done = prepare(source, place, tmp_path / "out", reading)
    total, left_out = sum(done.records.values()), done.bad + sum(done.dropped.values())
    print(f"{source} {name}: {done.records}, left out {done.dropped}, bad {done.bad}")
    assert total > 50 and min(done.records.values()) > 0
    assert left_out < 0.05 * total
    assert 0.02 < done.records["dev"] / total < 0.1
    files = {split: Path(path) for split, path in done.files.items()}
    leaks = find_leaks([files["train"]], [files["dev"], files["test"]], near=None, long=1_000_000)
    assert leaks.found == []


def test_counts_of_layouts_that_can_be_counted_otherwise(tmp_path: Path) -> None:
    def records(source: str, name: str) -> int:
        return sum(prepare(source, DATA / name, tmp_path / "out.jsonl", Reading()).records.values())

    couplets = "sft_reward/couplet/train"
    assert records("couplets", couplets) == len(_lines(DATA / couplets / "in.txt.gz"))
    assert records("lccc", "dialogue/lccc_base/LCCC-base_valid.json.gz") == len(
        _lines(DATA / "dialogue/lccc_base/dialogs.txt.gz")
    )
    pairs = sum(
        line.startswith("古文")
        for path in (DATA / "sft_reward/classical_modern").rglob("*.gz")
        for line in _lines(path)
    )
    assert records("classical", "sft_reward/classical_modern") == pairs


def test_lccc_text_is_that_of_the_plain_file(tmp_path: Path) -> None:
    prepare("lccc", DATA / "dialogue/lccc_base/LCCC-base_valid.json.gz", tmp_path / "out.txt", Reading())
    ours = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")[:-1]
    theirs = _lines(DATA / "dialogue/lccc_base/dialogs.txt.gz")
    # The plain file keeps spaces beside marks and Latin letters that ours takes out.
    assert [line.replace(" ", "") for line in ours] == [line.replace(" ", "") for line in theirs]


CLEANED: list[tuple[str, str, str, Adapter | None]] = [
    ("eva", "lccc", "dialogue/lccc_base/LCCC-base_valid.json.gz", None),
    ("assistant", "sharegpt", "dialogue/smile/smile_dialogs.jsonl.gz", None),
    ("weibo", "weibo", "sft_reward/weibo_news_comments/checked_news_comments.jsonl.gz", _weibo),
]
# News is longer than talk, and its comments are judged with it.
WEIBO = [
    "noise", "urls", "stretched", {"length": {"longest": 2000}}, "language", "symbols", "personal", "adverts",
    "repetition", "parrot", "generic", "same_sessions", "near_duplicates",
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "source", "name", "adapter"), CLEANED, ids=[case[0] for case in CLEANED])
def test_cleaning_of_real_slices(recipe: str, source: str, name: str, adapter: Adapter | None, tmp_path: Path) -> None:
    place = adapter(DATA / name, tmp_path) if adapter else DATA / name
    prepare(source, place, tmp_path / "in.jsonl", Reading(rejects=Rejects()))
    steps = build(WEIBO, "weibo") if recipe == "weibo" else load(recipe)
    done = clean(steps, [tmp_path / "in.jsonl"], tmp_path / "out.jsonl", rejects=tmp_path / "rejects.jsonl")
    assert done is not None
    print(f"\n{name}: {done.kept} of {done.read} kept")
    for row in done.rows():
        print(" | ".join(map(str, row)))
    assert 0.5 * done.read < done.kept < done.read
    removed = sum(step.removed for step in done.steps.values())
    with (tmp_path / "rejects.jsonl").open(encoding="utf-8") as rejects:
        assert sum(1 for _ in rejects) == removed
