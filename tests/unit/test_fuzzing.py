"""Damaged files of every kind that hanmo reads: nothing in them runs, and each ends in one message, within 10 seconds and 1 GB."""

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.config import load
from hanmo.data.prepare.sources import SOURCES
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.data.prepare.views import views
from hanmo.data.store.token_store import Store
from hanmo.data.store.tokenize import TokenizerPlace, tokenize
from hanmo.evaluation import human
from hanmo.evaluation.results.result import FORMAT, read_result
from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split
from hanmo.evaluation.suites.custom import read_split as read_own
from hanmo.evaluation.suites.custom import read_task
from hanmo.evaluation.suites.exam.suite import all_exams, read_subject
from hanmo.generation.prompts import read_prompts
from hanmo.records import Rejects, iter_records
from hanmo.training.launch import read_hostfile
from hanmo.training.stages.sft import SftConfig
from tests.fuzzing import OK, Kind, damaged, fuzz
from tests.hostile import command
from tests.unit.checkpoint_files import write_hub, write_megatron
from tests.unit.clue_files import clue_folder
from tests.unit.test_strange_values import ENTRIES, RECORDS
from tests.unit.tiny import tiny, tiny_eva
from tests.unit.transformers_models import write_model

Makers = dict[str, Callable[[Path], Kind]]
TALKS = [
    record for record in RECORDS if "text" not in record and "chosen" not in record
]  # which EVA takes in every command
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in TALKS)
MODEL = "../model"  # beside the copies


def records(folder: Path) -> Kind:
    tokenizer = tiny_eva().tokenizer

    def encode(folder: Path, name: str) -> None:
        for record in iter_records(folder / name):
            for texts in views(record):
                tokenizer(texts)

    folder.mkdir()
    (folder / "a.jsonl").write_text(LINES, encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(TALKS, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "a.txt").write_text("你好吗\t我很好\n谢谢\t再见\n" * 9, encoding="utf-8")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    return Kind(
        folder,
        ("a.jsonl", "a.json", "a.txt", "a.jsonl.gz"),
        (
            lambda folder, name: command("data", "inspect", folder / name, "--json"),
            lambda folder, name: command("data", "clean", folder / name, "--out", folder / "out.jsonl", "--skip-bad"),
            encode,
        ),
    )  # fmt: skip


def prompts(folder: Path) -> Kind:
    folder.mkdir()
    waiting = [
        {"prompt": "问"},
        {"instruction": "问", "input": "文"},
        {"messages": [{"role": "user", "content": "你好"}]},
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in waiting * 3), encoding="utf-8")
    (folder / "a.txt").write_text("你好吗\n再见\n" * 9, encoding="utf-8")
    return Kind(folder, ("a.jsonl", "a.txt"), (
            lambda folder, name: list(read_prompts(folder / name)),
        ),
    )  # fmt: skip


def sources(folder: Path) -> Kind:
    def read(folder: Path, name: str) -> None:
        list(SOURCES[Path(name).parts[0]](folder / name, SourceReader(rejects=Rejects())))

    files = {f"{name}/{'poet.tang.1' if name == 'poetry' else 'dev'}.json": entry for name, entry in ENTRIES.items()}
    for name, entry in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps([entry] if name.startswith("news") else entry) + "\n", encoding="utf-8")
    (folder / "zhidao").mkdir()
    (folder / "zhidao" / "dev.csv").write_text(
        'title,question,reply,is_best\n你好,"问\n题",答,1\n你好,问,答,0\n', "utf-8"
    )
    return Kind(folder, (*files, "zhidao/dev.csv"), (read,))


def suites(folder: Path) -> Kind:
    def read(folder: Path, name: str) -> None:
        group = Path(name).parts[0]
        if name.endswith(".csv"):
            exam = all_exams()["mmlu"]
            read_subject(exam, exam.subjects["anatomy"], folder, "test")
        elif group in all_tasks():
            read_split(all_tasks()[group], folder, "dev")
        else:
            read_own(read_task(folder / "own.yaml"), "dev")

    clue_folder(folder)
    (folder / "test").mkdir()
    (folder / "test" / "anatomy_test.csv").write_text('"q ""x""\n?",1,2,3,4,A\nq,1,2,3,4,B\n' * 5, encoding="utf-8")
    (folder / "own.yaml").write_text(
        "data: own.json\nanswer: right\noptions: choices\ntemplate: '{q}{option}'\n", "utf-8"
    )
    (folder / "own.json").write_text('{"q": "问", "choices": ["甲", "乙"], "right": 1}\n' * 3, encoding="utf-8")
    clue = (f"{path.parent.name}/{path.name}" for path in sorted(folder.glob("*/dev*.json")))
    return Kind(folder, (*clue, "test/anatomy_test.csv", "own.yaml", "own.json"), (read,))


def ratings(folder: Path) -> Kind:
    folder.mkdir()
    (folder / "key.json").write_text(
        json.dumps({f"{n:04}": {"system": "甲乙"[n % 2], "question": "问"} for n in range(6)})
    )
    with (folder / "rater1.csv").open("w", encoding="utf-8") as file:
        csv.writer(file).writerows([human.COLUMNS, *([f"{n:04}", *["1"] * (len(human.COLUMNS) - 1)] for n in range(6))])
    return Kind(
        folder,
        ("key.json", "rater1.csv"),
        (lambda folder, name: command("eval", "human-score", folder / "rater1.csv", "--key", folder / "key.json"),),
    )


def settings(folder: Path) -> Kind:
    """Cleaning recipes, a run's settings, machines, and results of evaluations."""

    def read(folder: Path, name: str) -> None:
        match name:
            case "recipe.yaml":
                command("data", "recipe", folder / name)
            case "run.yaml":
                load(SftConfig, {"model": "m", "data": "d"}, folder / name)
            case "hosts":
                read_hostfile(folder / name)
            case "results.json":
                read_result(folder / name)

    folder.mkdir()
    (folder / "recipe.yaml").write_text("- platform_markup\n- length: {longest: 128}\n", encoding="utf-8")
    (folder / "run.yaml").write_text("limit: 128\ntrainer:\n  learning_rate: 1e-4\n  max_steps: 3\n", encoding="utf-8")
    (folder / "hosts").write_text("one slots=8\n# 二\ntwo slots=4\n", encoding="utf-8")
    results = {"format": FORMAT, "tasks": {"afqmc": {"items": [{"right": True, "where": "a:1"}]}}}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return Kind(folder, ("recipe.yaml", "run.yaml", "hosts", "results.json"), (read,))


def stores(folder: Path) -> Kind:
    folder.mkdir()
    (folder / "text.txt").write_text("今天天气真不错\n明天去哪里玩\n", encoding="utf-8")
    tokenize(TokenizerPlace(str(folder / MODEL)), [folder / "text.txt"], folder / "store", "text")
    names = tuple(f"store/{path.name}" for path in sorted((folder / "store").iterdir()))
    return Kind(
        folder,
        names,
        (lambda folder, name: [store[n] for store in [Store(folder / "store")] for n in range(len(store))],),
    )


def of_model(folder: Path, given: str | None = None) -> Kind:
    """``given``: the configuration's file, where the files of weights do not tell it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def config(folder: Path) -> Path | None:
        return given and folder / given

    return Kind(
        folder,
        tuple(names),
        (
            lambda folder, name: inspect_model(folder, config=config(folder)),
            lambda folder, name: convert(folder, folder.parent / "target", config=config(folder), force=True),
            lambda folder, name: open_model(folder, config=config(folder), device="cpu"),
        ),
    )


DATA: Makers = {
    "records": records,
    "prompts": prompts,
    "suites": suites,
    "ratings": ratings,
}
MODELS: Makers = {
    "originals": lambda folder: of_model(write_hub(folder)),
    "rank files": lambda folder: of_model(write_megatron(folder), "model_config.json"),
    "EVA": lambda folder: (save_model(tiny_eva(), folder), of_model(folder))[1],
    "PanGu": lambda folder: (save_model(tiny("pangu", folder.with_name("words")), folder), of_model(folder))[1],
    "transformers": lambda folder: of_model(write_model("qwen3", folder)),
}


@pytest.mark.parametrize(
    ("makers", "count"),
    [(DATA, 300), *(pytest.param(kind, 1500, marks=pytest.mark.slow) for kind in (DATA, MODELS))],
    ids=["data", "much data", "many models"],
)
def test_damaged_files(makers: Makers, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_model(tiny_eva(), tmp_path / "model")
    kinds = {name: make(tmp_path / f"honest {name}") for name, make in makers.items()}
    found = fuzz(kinds, count, tmp_path)
    counts = Counter((one.name, one.kind) for one in found)
    print(*(f"{name}: {kind} {number}" for (name, kind), number in sorted(counts.items())), sep="\n")
    bad = [one for one in found if one.kind not in OK]
    assert not bad, "\n\n".join(f"{one.name} {one.number}: {one.kind}\n{one.printed}" for one in bad)
    assert len(found) == count and any(one.kind == "message" for one in found)


def test_damage_is_a_function_of_the_number() -> None:
    import random

    data = LINES.encode()
    assert damaged(data, random.Random(3)) == damaged(data, random.Random(3)) != data
