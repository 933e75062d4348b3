"""Honest files of data of every class, and what reads them; see tests/fuzzing.py."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

from hanmo.checkpoints import save_model
from hanmo.config import load
from hanmo.data.prepare.sources import SOURCES
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.data.prepare.views import views
from hanmo.data.store.token_store import Store
from hanmo.data.store.tokenize import TokenizerPlace, tokenize
from hanmo.evaluation import human
from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split
from hanmo.evaluation.suites.custom import read_split as read_own
from hanmo.evaluation.suites.custom import read_task
from hanmo.evaluation.suites.exam.suite import all_exams, read_subject
from hanmo.generation.prompts import read_prompts
from hanmo.records import Rejects, iter_records
from hanmo.training.launch import read_hostfile
from hanmo.training.stages.ppo import PpoConfig, ppo
from hanmo.training.stages.sft import SftConfig, sft
from tests.fuzzing import Kind
from tests.hostile import command
from tests.unit.alignment_cases import REWARD, starts, trainer
from tests.unit.clue_files import clue_folder
from tests.unit.test_strange_values import ENTRIES, RECORDS
from tests.unit.tiny import tiny_eva

TALKS = [
    record for record in RECORDS if "text" not in record and "chosen" not in record
]  # which EVA takes in every command
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in TALKS)
OWN_TASK = "data: own.json\nanswer: right\noptions: choices\ntemplate: '{q}{option}'\n"
OWN_QUESTIONS = '{"q": "问", "choices": ["甲", "乙"], "right": 1}\n' * 3


def model_beside(folder: Path) -> Path:
    """A tiny EVA beside a folder and beside the copies of it."""
    place = folder.parent / "model"
    return place if place.is_dir() else save_model(tiny_eva(), place)


def records(folder: Path) -> Kind:
    def encode(folder: Path, name: str) -> None:
        tokenizer = tiny_eva().tokenizer
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
    )


def prompts(folder: Path) -> Kind:
    folder.mkdir()
    talk = {"messages": [{"role": "user", "content": "你好"}]}
    waiting = [{"prompt": "问"}, {"instruction": "问", "input": "文"}, talk]
    (folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in waiting * 3), encoding="utf-8")
    (folder / "a.txt").write_text("你好吗\n再见\n" * 9, encoding="utf-8")
    return Kind(folder, ("a.jsonl", "a.txt"), (lambda folder, name: list(read_prompts(folder / name)),))


def sources(folder: Path) -> Kind:
    def read(folder: Path, name: str) -> None:
        list(SOURCES[Path(name).parts[0]](folder / name, SourceReader(rejects=Rejects())))

    files = {f"{name}/{'poet.tang.1' if name == 'poetry' else 'dev'}.json": entry for name, entry in ENTRIES.items()}
    for name, entry in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps([entry] if name.startswith("news") else entry) + "\n", encoding="utf-8")
    texts = {
        "zhidao/dev.csv": 'title,question,reply,is_best\n你好,"问\n题",答,1\n你好,问,答,0\n',
        "couplets/one.txt": "春风 秋月\n明月松间照 清泉石上流\n",
        "classical/book.txt": "古文：一\n现代文：甲\n\n古文：二\n现代文：乙\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(text, encoding="utf-8")
    return Kind(folder, (*files, *texts), (read,))


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
    (folder / "own.yaml").write_text(OWN_TASK, encoding="utf-8")
    (folder / "own.json").write_text(OWN_QUESTIONS, encoding="utf-8")
    clue = (f"{path.parent.name}/{path.name}" for path in sorted(folder.glob("*/dev*.json")))
    return Kind(folder, (*clue, "test/anatomy_test.csv", "own.yaml", "own.json"), (read,))


def ratings(folder: Path) -> Kind:
    folder.mkdir()
    key = {f"{n:04}": {"system": "甲乙"[n % 2], "question": "问"} for n in range(6)}
    (folder / "key.json").write_text(json.dumps(key))
    with (folder / "rater1.csv").open("w", encoding="utf-8") as file:
        csv.writer(file).writerows([human.COLUMNS, *([f"{n:04}", *["1"] * (len(human.COLUMNS) - 1)] for n in range(6))])
    score = ("eval", "human-score")
    return Kind(
        folder,
        ("key.json", "rater1.csv"),
        (lambda folder, name: command(*score, folder / "rater1.csv", "--key", folder / "key.json"),),
    )


def settings(folder: Path) -> Kind:
    """Cleaning recipes, a run's settings, and machines."""

    def read(folder: Path, name: str) -> None:
        match name:
            case "recipe.yaml":
                command("data", "clean", folder / "a.jsonl", "--out", folder / "out.jsonl", "--recipe", folder / name)
            case "run.yaml":
                load(SftConfig, {"model": "m", "data": "d"}, folder / name)
            case "hosts":
                read_hostfile(folder / name)

    folder.mkdir()
    recipe = "- platform_markup\n- repeated_runs: {most: 3}\n- length: {longest: 128}\n- repetition: {n_gram: 4}\n"
    recipe += "- same_utterances\n- near_duplicates: {threshold: 0.8}\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "a.jsonl").write_text(LINES, encoding="utf-8")
    (folder / "run.yaml").write_text("limit: 128\ntrainer:\n  learning_rate: 1e-4\n  max_steps: 3\n", encoding="utf-8")
    (folder / "hosts").write_text("one slots=8\n# 二\ntwo slots=4\n", encoding="utf-8")
    return Kind(folder, ("recipe.yaml", "run.yaml", "hosts"), (read,))


def _own_task(folder: Path) -> list[object]:
    (folder / "own.yaml").write_text(OWN_TASK, encoding="utf-8")
    (folder / "own.json").write_text(OWN_QUESTIONS, encoding="utf-8")
    return ["eval", "task", folder.parent / "model", folder / "own.yaml", "--device", "cpu"]


def results(folder: Path) -> Kind:
    """What ``eval`` has written, compared and put into a table."""
    model_beside(folder)
    folder.mkdir()
    for name in ("one", "other"):
        done(*_own_task(folder), "--output", folder / name, *(["--choices", "2"] if name == "other" else []))
    one, other = "one/results.json", "other/results.json"
    return Kind(
        folder,
        (one,),
        (
            lambda folder, name: command("eval", "compare", folder / one, folder / other),
            lambda folder, name: command("eval", "table", folder / one, "--output", folder / "table.html"),
        ),
    )


def answers(folder: Path) -> Kind:
    """Answers that an evaluation goes on from."""
    model_beside(folder)
    folder.mkdir()
    (folder / "talks.txt").write_text("你好吗\t很好\n明天去哪里玩\t不去\n谢谢你\t再见\n", encoding="utf-8")

    def read(folder: Path, name: str) -> None:
        command(*commands(folder)[Path(name).parts[0]], "--output", folder / Path(name).parts[0])

    def commands(folder: Path) -> dict[str, list[object]]:
        talks = [folder.parent / "model", folder / "talks.txt", "--device", "cpu"]
        return {
            "perplexity": ["eval", "perplexity", *talks],
            "dialogue": ["eval", "dialogue", *talks, "max_new_tokens=2"],
            "task": _own_task(folder),
        }

    for name, words in commands(folder).items():
        done(*words, "--output", folder / name)
    return Kind(
        folder, tuple(str(path.relative_to(folder)) for path in sorted(folder.glob("*/answers/*.jsonl"))), (read,)
    )


def stores(folder: Path) -> Kind:
    """A store of tokens, as pretraining reads it."""
    model_beside(folder)
    folder.mkdir()
    (folder / "text.txt").write_text("今天天气真不错\n明天去哪里玩\n", encoding="utf-8")
    tokenize(TokenizerPlace(str(folder.parent / "model")), [folder / "text.txt"], folder / "store", "text")
    tokenizer = tiny_eva().tokenizer

    def read(folder: Path, name: str) -> None:
        store = Store(folder / "store", tokenizer)
        for number in range(min(len(store), 9)):
            store.kind(number)
            for part in store.parts(number):
                tokenizer.decode(part.tolist())
        store.lengths()

    return Kind(folder, tuple(f"store/{path.name}" for path in sorted((folder / "store").iterdir())), (read,))


def runs(folder: Path) -> Kind:
    """A training that was stopped before its last step, resumed."""
    model_beside(folder)
    folder.mkdir()
    (folder / "talks.txt").write_text("你好吗\t很好\n明天去哪里玩\t不去\n", encoding="utf-8")
    steps = trainer(max_steps=2, save_steps=1, save_strategy="steps", per_device_train_batch_size=2)
    config = SftConfig("../model", "talks.txt", "run", trainer=steps)
    return _run(folder, lambda resume: sft(config, resume=resume), "checkpoint-1")


def rounds(folder: Path) -> Kind:
    """The same of a training in rounds, whose critic and reward scale go on too."""
    starts(folder, "eva")
    given = {"model": "start", "data": "prompts.jsonl", "out": "run", "rewards": (REWARD,), "samples": 8, "rounds": 1}
    sizes = {"limit": 32, "generation": {"max_new_tokens": 2}, "trainer": trainer(per_device_train_batch_size=8)}
    config = PpoConfig(**{**given, **sizes}, save_rounds=1, epochs=1, scale_reward="running")
    return _run(folder, lambda resume: ppo(config, resume=resume), "checkpoint-1")


def _run(folder: Path, train: Callable[[bool], object], kept: str) -> Kind:
    def resume(folder: Path, name: str) -> None:
        with chdir(folder):
            train(True)

    with chdir(folder):
        train(False)
    run = folder / "run"
    for path in run.iterdir():
        if path.name not in ("config.yaml", "metrics.jsonl", "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (run / "checkpoints").iterdir():
        if path.name != kept:
            shutil.rmtree(path)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return Kind(folder, tuple(str(path.relative_to(folder)) for path in files), (resume,), whole=True)


def done(*words: object) -> None:
    """A command that must have nothing to complain of."""
    try:
        command(*words)
    except SystemExit as end:
        assert not end.code, words
