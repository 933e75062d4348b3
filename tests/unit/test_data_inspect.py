"""What is found in a file, and the data commands as a user runs them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hanmo import cli
from hanmo.data.prepare.inspection import inspect_file, page
from hanmo.data.prepare.vocabulary import build
from hanmo.errors import RecordError
from hanmo.records import Dialogue, PromptResponse, Record, ScoredAnswers, Text, iter_records, write_records

RECORDS: list[Record] = [
    Dialogue(("你好吗", "我很好")),
    Dialogue(("你好吗？", "我很好")),  # the same but for a mark
    Dialogue(("hello there my friend", "good day")),
    Text("一" * 300),
    PromptResponse("问", "答"),
    ScoredAnswers("问题", (("甲", 1.0), ("乙", 0.0))),
]


def _file(folder: Path) -> Path:
    path = folder / "in.jsonl.gz"
    write_records(path, RECORDS)
    return path


def test_counts_lengths_languages_and_duplicates(tmp_path: Path) -> None:
    found = inspect_file(_file(tmp_path))
    assert found.records == 6
    assert found.kinds == {"dialogue": 3, "text": 1, "prompt and response": 1, "prompt with scored answers": 1}
    assert found.lengths == [6, 7, 29, 300, 2, 4]
    assert found.texts == 12
    assert found.languages == {"Chinese": 5, "Latin letters": 1}
    assert found.turns == {2: 3}
    assert (found.same, found.nearly_same, found.bad) == (1, 1, 0)
    assert dict(found.histogram()) == {
        "2-3": 1,
        "4-7": 3,
        "8-15": 0,
        "16-31": 1,
        "32-63": 0,
        "64-127": 0,
        "128-255": 0,
        "256-511": 1,
    }
    assert len(found.samples) == 6
    facts = found.facts()
    assert facts["records"] == "6" and "gzip" in facts["size"]
    assert facts["the same as an earlier one"] == "1 (16.7 %)"


def test_lengths_in_tokens(tmp_path: Path) -> None:
    found = inspect_file(_file(tmp_path), lengths=lambda texts: [2 * len(text) for text in texts])
    assert found.lengths == [12, 14, 58, 600, 4, 8]
    assert found.unit == "tokens"


def test_problems_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "好"}\nnot json\n{"text": 1}\n', encoding="utf-8")
    found = inspect_file(path)
    assert (found.records, found.bad) == (1, 2)
    assert found.problems[0].startswith(f"{path}:2: not JSON")
    assert found.problems[1].startswith(f"{path}:3: ")


def test_samples_are_drawn_by_seed(tmp_path: Path) -> None:
    write_records(tmp_path / "in.jsonl", [Text(f"第{n}段") for n in range(200)])
    first, again, other = (inspect_file(tmp_path / "in.jsonl", seed=seed).samples for seed in (1, 1, 2))
    assert len(first) == 10
    assert first == again != other


def test_empty_and_missing(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    found = inspect_file(tmp_path / "empty.jsonl")
    assert found.facts()["form"] == "nothing" and found.histogram() == []
    page(found).html()
    with pytest.raises(RecordError, match="no such file"):
        inspect_file(tmp_path / "missing.jsonl")


def test_page_shows_problems_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "<好>"}\n{"text": 1}\n', encoding="utf-8")
    html = page(inspect_file(path)).html()
    assert "&lt;好&gt;" in html and "in.jsonl:2" in html and "All 1<" in html


def test_the_bars_of_the_page_are_whole_numbers(tmp_path: Path) -> None:
    html = page(inspect_file(_file(tmp_path))).html()
    assert re.findall(r"</i><span>([^<]*)</span>", html) == ["1", "3", "0", "1", "0", "0", "0", "1", "3"]


@pytest.mark.parametrize(("letters", "size"), [(1500, "1.5 kB"), (2_500_000, "2.50 MB")])
def test_the_size_of_a_small_file_is_not_0(letters: int, size: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}' + " " * (letters - 14) + "\n")
    assert inspect_file(path).facts()["size"] == size


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``hanmo data …``; its --json result and exit code."""

    def command(*arguments: str | Path) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["hanmo", "data", *map(str, arguments), "--json"])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, error = capsys.readouterr()
        return {**(json.loads(out) if out.strip() else {}), "code": code, "error": error}

    return command


def test_from_raw_files_to_a_store(run: Run, tmp_path: Path) -> None:
    raw = tmp_path / "raw.json"
    entries = [
        {"title": f"第{n}个问题{chr(0x4E00 + 7 * n) * 9}", "desc": "", "answer": f"回答{chr(0x5E00 + 11 * n) * 20}"}
        for n in range(300)
    ]
    raw.write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    prepared = run("prepare", "baike", raw, tmp_path / "out", "--dev", "0.1", "--test", "0.1")
    assert prepared["code"] == 0 and sum(prepared["records"].values()) == 300
    files = prepared["files"]
    assert run("contamination", files["train"], files["dev"], files["test"])["code"] == 0
    contaminated = tmp_path / "contaminated.jsonl"
    write_records(contaminated, [*iter_records(files["dev"]), list(iter_records(files["train"]))[5]])
    found = run("contamination", files["train"], contaminated)
    assert (found["code"], found["contaminated_records"]) == (1, 1)
    cleaned = run(
        "clean",
        files["train"],
        "--out",
        tmp_path / "clean.jsonl",
        "--recipe",
        "assistant",
        "--page",
        tmp_path / "c.html",
    )
    assert cleaned["code"] == 0 and cleaned["read"] == prepared["records"]["train"]
    assert (tmp_path / "c.html").is_file()
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(build(["问题回答"], words=0)), encoding="utf-8")
    stored = run(
        "tokenize", tmp_path / "clean.jsonl", "-o", tmp_path / "store", "--tokenizer", vocabulary, "--family", "eva"
    )
    assert stored["code"] == 0 and stored["documents"] == cleaned["kept"]
    inspected = run(
        "inspect", files["train"], "--page", tmp_path / "i.html", "--tokenizer", vocabulary, "--family", "eva"
    )
    assert inspected["facts"]["records"] == str(prepared["records"]["train"])
    assert (tmp_path / "i.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "bake", ".", "out"), "did you mean baike"),
        (("clean", "missing.jsonl", "--out", "x.jsonl"), "no such file"),
        (("inspect", "missing.jsonl"), "no such file"),
        (("clean", "missing.jsonl", "--out", "x.jsonl", "--plain", "txt"), "unknown form of plain lines"),
    ],
)
def test_mistakes_are_one_message(
    arguments: tuple[str, ...], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(*arguments)
    assert found["code"] == 2 and message in found["error"]
    assert not list(tmp_path.iterdir())
