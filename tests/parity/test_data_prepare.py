"""Sources and pairs against the recordings of the original preparation script."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hanmo.data.prepare.sources import SOURCES
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.data.rows.pairs import preferences
from hanmo.records import ScoredAnswers
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("clue")
FOLDER = PARITY / "clue" / "data_prepare"
CASES = [path for path in sorted(FOLDER.glob("*.json")) if path.stem != "pairs"]
EXACT = {"weibo", "baike", "zhidao"}  # the others draw their wrong answers
ERAS = ("head", "sep")
cases = pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)


def _write(case: dict[str, Any], folder: Path) -> Path:
    """The raw data of a case in its genuine layout."""
    raw = case["raw"]
    if case["source"] == "couplets":
        (folder / "couplets.txt").write_text("\n".join(raw) + "\n", encoding="utf-8")
    elif isinstance(raw, list):
        lines = [json.dumps(entry, ensure_ascii=False) for entry in raw]
        (folder / "raw.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        for name, content in raw.items():
            path = folder / (name if "." in name else name + ".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
    return folder


def _expected(case: dict[str, Any], era: str) -> list[dict[str, Any]]:
    found = case[f"{era}_intended"]
    found = case[f"{era}_literal"] if isinstance(found, str) else found
    returned = found["returned_records"]
    return found["file_records"] if isinstance(returned, str) else returned


def _read(path: Path, folder: Path, **switches: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    case = load(path)
    reader = SourceReader(seed=case["seed"], **switches)
    records = [item.record for item in SOURCES[case["source"]](_write(case, folder), reader)]
    return case, [
        {
            "prompt": record.prompt,
            "prefix": record.prefix,
            "answers": [{"answer": answer, "score": score} for answer, score in record.answers],
        }
        for record in records
    ]


def _prefixed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"prefix": "", **record} for record in records]


@pytest.mark.parametrize("era", ERAS)
@cases
def test_published_records(path: Path, era: str, tmp_path: Path) -> None:
    case, ours = _read(path, tmp_path, published=True, sep=era == "sep")
    theirs = _prefixed(_expected(case, era))
    if case["source"] in EXACT:
        assert ours == theirs
        return
    assert len(ours) == len(theirs)
    if case["source"] == "poetry":
        # A work again under the same prompt has the same first answer; the order of files is the same.
        assert [r["prompt"] for r in ours] == [r["prompt"] for r in theirs]
        assert [r["answers"][0] for r in ours] == [r["answers"][0] for r in theirs]
    elif case["source"] == "couplets":
        assert [(r["prompt"], r["prefix"], r["answers"][0]) for r in ours] == [
            (r["prompt"], r["prefix"], r["answers"][0]) for r in theirs
        ]
    assert [[a["score"] for a in r["answers"]] for r in ours] == [[a["score"] for a in r["answers"]] for r in theirs]


@cases
def test_default_is_the_intended_behaviour(path: Path, tmp_path: Path) -> None:
    """What differs from the recording is only what its README lists as a bug."""
    case, ours = _read(path, tmp_path)
    theirs = _prefixed(_expected(case, "head"))
    if case["source"] == "weibo":
        theirs = [record for record in theirs if record["answers"]]
    elif case["source"] == "baike":
        theirs = [record for record in theirs if record["answers"][0]["answer"]]
    elif case["source"] == "zhidao":
        theirs = [{**record, "prefix": "答："} for record in theirs]
    if case["source"] in EXACT:
        assert ours == theirs
    elif case["source"] == "poetry":
        forgotten = sum(len(content) for name, content in case["raw"].items() if "huajianji" in name)
        known = Counter((r["prompt"], r["answers"][0]["answer"]) for r in ours)
        wanted = {(r["prompt"], r["answers"][0]["answer"]) for r in theirs}
        assert max(known.values()) == 1  # nothing repeats
        assert wanted <= known.keys()
        assert len(known) == len(wanted) + forgotten


@cases
def test_wrong_answers_keep_their_constraints(path: Path, tmp_path: Path) -> None:
    case, ours = _read(path, tmp_path)
    source = case["source"]
    if source in EXACT:
        pytest.skip("no wrong answers are drawn")
    again = _read(path, tmp_path)[1]
    assert ours == again  # a seed, so the same draw
    sides = _sides(case) if source == "classical" else {}
    kinds = {r["answers"][0]["answer"]: _kind(r["prompt"]) for r in ours} if source == "poetry" else {}
    for record in ours:
        texts = [answer["answer"] for answer in record["answers"]]
        assert len(set(texts)) == len(texts), "an answer comes twice"
        scores = [answer["score"] for answer in record["answers"]]
        if source == "couplets":
            assert scores == [1, 0, 0, -1, -1]
            lengths = [len(text) for text in texts]
            assert lengths[:3] == [lengths[0]] * 3
            assert len({lengths[0], *lengths[3:]}) == 3
        elif source == "classical":
            assert scores == [1, 0, 0, -1, -1]
            books = [sides[record["prefix"], text] for text in texts]
            assert books[:3] == [books[0]] * 3
            assert len({books[0], *books[3:]}) == 3
            assert {record["prompt"][:3], record["prefix"][:3]} == {"古文：", "现代文"} or record["prompt"].startswith(
                "现"
            )
        else:
            author, genre = _kind(record["prompt"])
            assert scores[0] == 1 and scores == sorted(scores, reverse=True) and -2 in scores
            for text, score in zip(texts, scores, strict=True):
                other_author, other_genre = kinds[text]
                assert (other_genre == genre) == (score > -2)
                assert (other_author == author and other_genre == genre) == (score > -1)


def test_classical_pairs_are_all_there(tmp_path: Path) -> None:
    for path in CASES:
        if path.stem != "classical":
            continue
        case, ours = _read(path, tmp_path)
        pairs = set()
        for content in case["raw"].values():
            lines = [line for line in content.split("\n") if line.strip()]
            pairs |= {frozenset((a, b)) for a, b in zip(lines[::2], lines[1::2], strict=True)}
        found = [frozenset((r["prompt"], r["prefix"] + r["answers"][0]["answer"])) for r in ours]
        assert set(found) == pairs
        assert len(found) == len(pairs) == len(_expected(case, "head"))
        assert len({r["prefix"] for r in ours}) == 2  # either way comes up


def _sides(case: dict[str, Any]) -> dict[tuple[str, str], str]:
    found = {}
    for book, content in case["raw"].items():
        for line in content.split("\n"):
            side, _, text = line.partition("：")
            if text:
                found[side + "：", text] = book
    return found


def _kind(prompt: str) -> tuple[str, str]:
    author, _, rest = prompt.removeprefix("以").partition("的风格，写一")
    return author, rest[1:].partition("，题为")[0]


PAIRS = load(FOLDER / "pairs.json", {"hand_cases": [], "sources": {}})


def _pairs(record: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """Chosen and rejected answers as published, and how many steps of the walk gave none."""
    answers = tuple((str(answer["answer"]), answer["score"]) for answer in record["answers"])
    found = preferences(ScoredAnswers(record["prompt"], answers), published=True)
    return [(pair.chosen.response, pair.rejected.response) for pair in found], max(len(answers) - 1, 0) - len(found)


@pytest.mark.parametrize("case", PAIRS["hand_cases"], ids=lambda case: str(case["record"]["prompt"]))
def test_reward_pairs(case: dict[str, Any]) -> None:
    record = case["record"]
    pairs, discarded = _pairs({**record, "prompt": str(record["prompt"])})
    assert pairs == [(pair["chosen_answer"], pair["rejected_answer"]) for pair in case["reward_pairs"]]
    assert case["reward_log"] == f"# pairs: {len(pairs)}, # discarded: {discarded}"


@pytest.mark.parametrize("source", PAIRS["sources"])
def test_reward_pairs_of_sources(source: str) -> None:
    """The recorded records of a source give the recorded pairs."""
    expected = PAIRS["sources"][source]
    case = load(FOLDER / f"{source}.json")
    found, discarded = [], 0
    for record in _expected(case, "head"):
        pairs, lost = _pairs(record)
        found += [(record["prompt"], *pair) for pair in pairs]
        discarded += lost
    assert len(found) == expected["n_pairs"]
    assert expected["log"] == f"# pairs: {len(found)}, # discarded: {discarded}"
    recorded = [(pair["prompt"], pair["chosen_answer"], pair["rejected_answer"]) for pair in expected["pairs"]]
    assert found[: len(recorded)] == recorded
