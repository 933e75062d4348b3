"""Real slices of the published data through prepare and clean: every record arrives, splits share nothing."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hanmo.data.prepare.cleaning.clean import clean
from hanmo.data.prepare.cleaning.recipe import build, load
from hanmo.data.prepare.contamination import find_contamination
from hanmo.data.prepare.from_source import prepare
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.data.prepare.splits import Shares
from hanmo.records import Rejects
from tests.places import DATA, needs_data

pytestmark = [needs_data, pytest.mark.slow]
Adapter = Callable[[Path, Path], Path]


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return content.decode("utf-8").split("\n")[:-1]


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


# source -> where its slices lie, and what gives them the published layout
LAYOUTS: list[tuple[str, str, Adapter | None]] = [
    ("weibo", "sft_reward/weibo_news_comments/checked*.jsonl.gz", _weibo),
    ("baike", "sft_reward/baike/kgclue_train*.jsonl.gz", _baike),
    ("zhidao", "sft_reward/zhidao/*zhidao*.csv.gz", None),
    ("couplets", "sft_reward/couplet/*", None),
    ("classical", "sft_reward/classical_modern", None),
    ("poetry", "sft_reward/poetry", None),
    ("kdconv", "kdconv/data", None),
    ("lccc", "dialogue/lccc_base/*.json.gz", None),
    ("lccc", "dialogue/cdial_gpt_toy/*.json", None),
    ("crosswoz", "dialogue/crosswoz/*.json.zip", None),
    ("sharegpt", "dialogue/smile/smile*.jsonl.gz", None),
    ("sharegpt", "instruct/sharegpt*.jsonl.gz", None),
    ("alpaca", "instruct/alpaca*.json.gz", None),
    ("dpo", "preference", None),
]
Slice = tuple[str, Path, Adapter | None]


def found(layouts: list[tuple[str, str, Adapter | None]]) -> list[Any]:
    """The slices that are there; for a layout without any, one that says so."""
    made = []
    for source, pattern, adapter in layouts:
        places = sorted(DATA.glob(pattern))
        made += [pytest.param((source, place, adapter), id=f"{source}-{place.name}") for place in places]
        if not places:
            mark = pytest.mark.skip(reason=f"no {pattern} in {DATA}")
            made.append(pytest.param((source, DATA / pattern, adapter), marks=mark, id=f"{source}-none"))
    return made


@pytest.mark.parametrize("slice_", found(LAYOUTS))
def test_slice_is_prepared_without_contamination(slice_: Slice, tmp_path: Path) -> None:
    source, place, adapter = slice_
    name = place.name
    if adapter:
        place = adapter(place, tmp_path)
    reading = SourceReader(shares=Shares(0.05, 0.05), rejects=Rejects())
    done = prepare(source, place, tmp_path / "out", reading)
    total, left_out = sum(done.records.values()), done.bad + sum(done.dropped.values())
    print(f"{source} {name}: {done.records}, left out {done.dropped}, bad {done.bad}")
    assert total > 50 and min(done.records.values()) > 0
    assert left_out < 0.05 * total
    assert 0.02 < done.records["dev"] / total < 0.1
    files = {split: Path(path) for split, path in done.files.items()}
    contamination = find_contamination([files["train"]], [files["dev"], files["test"]], near=None, long=1_000_000)
    assert contamination.found == []


def records(source: str, place: Path, folder: Path) -> int:
    return sum(prepare(source, place, folder / "out.jsonl", SourceReader()).records.values())


@pytest.mark.parametrize("slice_", found([("couplets", "sft_reward/couplet/*", None)]))
def test_every_line_of_couplets_is_a_record(slice_: Slice, tmp_path: Path) -> None:
    _, place, _ = slice_
    (upper,) = place.glob("in.txt*")
    assert records("couplets", place, tmp_path) == len(_lines(upper))


@pytest.mark.parametrize("slice_", found([("classical", "sft_reward/classical_modern", None)]))
def test_every_pair_of_classical_texts_is_a_record(slice_: Slice, tmp_path: Path) -> None:
    _, place, _ = slice_
    pairs = sum(line.startswith("古文") for path in place.rglob("*.txt*") for line in _lines(path))
    assert records("classical", place, tmp_path) == pairs


def plain_lccc() -> tuple[Path, list[str]]:
    """The plain file of dialogues, and that one of the published files which has as many."""
    folder = DATA / "dialogue" / "lccc_base"
    for plain in sorted(folder.glob("*dialogs*.txt*")):
        theirs = _lines(plain)
        for published in sorted(folder.glob("*.json.gz")):
            with gzip.open(published, "rt", encoding="utf-8") as file:
                if len(json.load(file)) == len(theirs):
                    return published, theirs
    pytest.skip(f"no plain file of dialogues with its published one in {folder}")


def test_lccc_text_is_that_of_the_plain_file(tmp_path: Path) -> None:
    published, theirs = plain_lccc()
    prepare("lccc", published, tmp_path / "out.txt", SourceReader())
    ours = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")[:-1]
    # The plain file keeps spaces beside marks and Latin letters that ours takes out.
    assert [line.replace(" ", "") for line in ours] == [line.replace(" ", "") for line in theirs]


# The recipe of each slice
CLEANED: dict[str, tuple[str, str, Adapter | None]] = {
    "eva": ("lccc", "dialogue/lccc_base/*.json.gz", None),
    "assistant": ("sharegpt", "dialogue/smile/smile*.jsonl.gz", None),
    "weibo": ("weibo", "sft_reward/weibo_news_comments/checked*.jsonl.gz", _weibo),
}
# News is longer than talk, and its comments are judged with it.
WEIBO = [
    "platform_markup", "urls", "repeated_runs", {"length": {"longest": 2000}}, "language", "symbols", "personal", "adverts",
    "repetition", "repeats_previous", "generic", "same_sessions", "near_duplicates",
]  # fmt: skip


@pytest.mark.parametrize("recipe", CLEANED)
def test_cleaning_of_real_slices(recipe: str, tmp_path: Path) -> None:
    source, pattern, adapter = CLEANED[recipe]
    place = next(iter(sorted(DATA.glob(pattern))), None)
    if place is None:
        pytest.skip(f"no {pattern} in {DATA}")
    name = place.name
    place = adapter(place, tmp_path) if adapter else place
    prepare(source, place, tmp_path / "in.jsonl", SourceReader(rejects=Rejects()))
    steps = build(WEIBO, "weibo") if recipe == "weibo" else load(recipe)
    done = clean(steps, [tmp_path / "in.jsonl"], tmp_path / "out.jsonl", rejects=tmp_path / "rejects.jsonl")
    assert done is not None
    print(f"\n{name}: {done.kept} of {done.read} kept")
    for row in done.as_dict()["steps"]:
        print(" | ".join(map(str, row.values())))
    assert 0.5 * done.read < done.kept < done.read
    removed = sum(step.removed for step in done.steps.values())
    with (tmp_path / "rejects.jsonl").open(encoding="utf-8") as rejects:
        assert sum(1 for _ in rejects) == removed
