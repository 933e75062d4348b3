"""What a user types wrong, or has in other forms than expected: one message and no traceback, or it is understood."""

import errno
import gzip
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints import save_model
from hanmo.cli import main
from hanmo.nn.row_model import attach_value_head
from hanmo.training.stages import dpo, sft  # noqa: F401 (transformers' trainer is imported before a package is hidden)
from tests import processes
from tests.unit.tiny import tiny_eva

LINES = "你好吗\t我很好\n谢谢\t再见\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    opened = tiny_eva()
    save_model(opened, folder / "model")
    attach_value_head(opened.network, "linear")
    save_model(opened, folder / "reward")
    (folder / "test.txt").write_text(LINES, encoding="utf-8")
    (folder / "gbk.txt").write_bytes(LINES.encode("gb18030"))
    (folder / "bom.txt").write_bytes(LINES.encode("utf-8-sig"))
    (folder / "test.txt.gz").write_bytes(gzip.compress(LINES.encode()))
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    (folder / "nothing.jsonl").write_text("", encoding="utf-8")
    (folder / "gbk.csv").write_bytes(
        "item,question,answer,fluency,informativeness,relevance,overall\n1,好,好\n".encode("gbk")
    )
    (folder / "twice.jsonl").write_text(
        "".join(f'{{"prompt": "{prompt}", "response": "好"}}\n' for prompt in ("你好", "再见", "你好")),
        encoding="utf-8",
    )
    (folder / "circle").symlink_to("circle")
    (folder / "key.json").write_text('{"1": {"system": "a", "question": "好"}}', encoding="utf-8")
    (folder / "wrong.json").write_text('{"1": 3}', encoding="utf-8")
    (folder / "list.json").write_text("[1]", encoding="utf-8")
    (folder / "turns.jsonl").write_text('{"turns": "ab"}\n', encoding="utf-8")
    return folder


class Ran:
    """A command as typed in the folder: exit code, what it printed, and what it said beside that."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


class Terminal(io.BytesIO):
    """Keys as they are typed: a line at a time."""

    def isatty(self) -> bool:
        return True

    def read1(self, size: int | None = -1) -> bytes:
        return self.readline(size)


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def typed(command: str, given: bytes = b"", stdin: type[io.BytesIO] = io.BytesIO) -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin(given), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["hanmo", *command.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ran(int(ended.value.code or 0), *capsys.readouterr())

    return typed


@pytest.mark.parametrize(
    "full",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory: you tried"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_message(full: Exception, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*given: Any, **settings: Any) -> Any:
        raise full

    monkeypatch.setattr("hanmo.generation.decode.generate", no_room)
    done = run("generate model 你好")
    assert done.code == 2 and done.out == ""
    said = re.sub(r"\(.*\)", "()", done.err.strip())
    assert said == "hanmo: out of memory (); take a smaller batch, limit or model, or a --dtype of fewer bits"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate model --input gbk.txt", "gbk.txt:1: not UTF-8"),
        ("generate model --input empty.txt", "empty.txt: no prompts"),
        ("generate model --input model", "model: is a folder"),
        ("generate model --input turns.jsonl", "turns.jsonl:1: keys 'turns'; expected one of"),
        ("generate model --input test.txt --output test.txt/x max_new_tokens=2", "test.txt: File exists"),
        ("generate model --input test.txt --output model max_new_tokens=2", "model: Is a directory"),
        ("eval dialogue model test.txt --output test.txt max_new_tokens=2", "test.txt: File exists"),
        ("generate model 你好 top_pp=0.5", "unknown setting 'top_pp': did you mean top_p"),
        ("generate model 你 好", "one prompt, not '你', '好'; quote a prompt that has spaces"),
        ("chat model runs/other", "one model, not model, runs/other; settings are key=value"),
        ("eval rouge none.txt test.txt", "none.txt: no such file"),
        ("eval compare none none", "none: No such file or directory; expected the results.json"),
        ("eval human-prepare a=test.txt", 'test.txt:1: expected {"prompt"'),
        ("generate model --input test.txt --device cuda/foo", "device=cuda/foo: no such device"),
        ("generate model --input test.txt --device cuda:99", "device=cuda:99: cannot be used here"),
        ("generate model -5度", "put -- before a text or a file that begins with -"),
        ("data inspect -a.jsonl", "put -- before a text or a file that begins with -"),
        ("generate model --input test.txt min_new_tokens=-5", "min_new_tokens=-5: must be 0 or more"),
        ("generate model --input test.txt suppressed_ids=[-1]", "must be ids of tokens, 0 or more"),
        (
            "generate model --input test.txt suppressed_ids=[999999]",
            "suppressed_ids=[999999]: this model's ids go up to",
        ),
        ("data prepare lccc none.json out", "none.json"),
        ("data prepare baike nothing.jsonl out", "no records of the source baike"),
        ("generate model 你好 temperature=.inf", "temperature=inf: expected a number, found infinity"),
        ("generate model 你好 repetition_penalty=nan", "repetition_penalty='nan': expected a number"),
        ("generate model 你好 num_beams=2 length_penalty=4000", "length_penalty=4000.0: must be between -50 and 50"),
        ("train sft model test.txt out trainer.learning_rate=nan", "trainer.learning_rate='nan': expected a number"),
        ("train sft model test.txt out trainer.adam_beta1=2", "Invalid beta parameter at index 0"),
        ("train sft model test.txt out trainer.num_train_epochs=.inf", "expected a number, found infinity"),
        ("train sft model test.txt out trainer.num_train_epochs=0", "trainer.num_train_epochs=0.0: must be above 0"),
        ("train sft model test.txt out trainer.max_steps=0", "trainer.max_steps=0: must be 1 or more, or -1"),
        ("train sft model test.txt out trainer.per_device_train_batch_size=0", "_batch_size=0: must be 1 or more"),
        ("train sft model test.txt out trainer.gradient_accumulation_steps=-1", "_steps=-1: must be 1 or more"),
        ("train sft model test.txt out trainer.dataloader_num_workers=-1", "_workers=-1: must be 0 or more"),
        ("train sft model test.txt out trainer.seed=-1", "trainer.seed=-1: must be from 0 to 4294967295"),
        ("train sft model test.txt out trainer.data_seed=-1", "trainer.data_seed=-1: must be from 0 to 4294967295"),
        ("train sft model test.txt out lora.rank=2 lora.dropout=-1", "lora.dropout=-1.0: must be 0 or more, below 1"),
        ("train sft model test.txt out lora.rank=2 lora.alpha=0", "lora.alpha=0: must be at least 1"),
        ("train reward model test.txt out trained_layers=.inf", "trained_layers=inf: expected a number"),
        ("data contamination test.txt test.txt --near nan", "Invalid value for '--near'"),
        ("data contamination test.txt test.txt --near 80", "Invalid value for '--near'"),
        ("data contamination test.txt test.txt --near 0", "Invalid value for '--near'"),
        ("data clean test.txt --out out --scorer model --scorer-least inf", "found infinity"),
        ("eval human-prepare a=twice.jsonl", "twice.jsonl:3: the prompt '你好' has an answer at twice.jsonl:1"),
        ("eval human-score gbk.csv --key key.json", "gbk.csv:2: not UTF-8"),
        ("eval human-score test.txt --key test.txt", "expected the key.json that"),
        (
            "eval human-score test.txt --key list.json",
            "list.json: expected a JSON object, found list; expected the key.json",
        ),
        ("eval human-score test.txt --key wrong.json", "no items with their systems; expected the key.json"),
        ("eval compare gbk.txt gbk.txt", "gbk.txt: not valid JSON"),
        (
            "eval compare list.json list.json",
            "list.json: expected a JSON object, found list; expected the results.json",
        ),
        ("convert model circle", "circle: "),
        ("reward score reward empty.txt", "empty.txt: no records"),
        ("reward score reward test.txt --batch-size 0", "--batch-size"),
        ("reward score reward test.txt --limit 0", "--limit"),
    ],
)
def test_a_mistake_is_one_message(run, command: str, message: str) -> None:
    ran = run(command)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize("file", ["bom.txt", "test.txt.gz"])
def test_files_of_text_may_be_compressed_or_marked(run, file: str) -> None:
    arguments = "do_sample=false max_new_tokens=3"
    assert (
        run(f"generate model --input {file} {arguments}").out == run(f"generate model --input test.txt {arguments}").out
    )
    assert run(f"eval rouge {file} test.txt --json").out == run("eval rouge test.txt test.txt --json").out


def test_what_is_piped_may_be_marked_and_must_be_utf8(run, folder: Path) -> None:
    greedy = "chat model do_sample=false max_new_tokens=3"
    plain, marked = run(greedy, LINES.encode()), run(greedy, LINES.encode("utf-8-sig"))
    assert plain.out == marked.out and plain.out.startswith("Usr >>> 你好吗")
    for command in (greedy, "generate model"):
        refused = run(command, LINES.encode("gb18030"))
        assert refused.code == 2 and "standard input is not UTF-8" in refused.err


@pytest.mark.parametrize("half", [b"\xe4\xbd\n", "你好".encode("gbk") + b"\n"])
def test_half_a_character_at_a_prompt_is_said_and_the_conversation_goes_on(run, folder: Path, half: bytes) -> None:
    first, then = "你好\n".encode(), "谢谢\n".encode()
    greedy = "do_sample=false max_new_tokens=3"
    for command, end in ((f"chat model {greedy}", b"/save talk.txt\n"), (f"generate model {greedy}", b"stop\n")):
        expected = run(command, first + then + end, Terminal)
        saved = (folder / "talk.txt").read_text(encoding="utf-8")
        ran = run(command, first + half + then + end, Terminal)
        assert (ran.code, ran.err.count("half of a character, or is not UTF-8, and was not taken")) == (0, 1)
        assert ran.out.count(">>> ") == expected.out.count(">>> ") + 1
        assert ran.out.replace(">>> ", "").replace("Usr ", "") == expected.out.replace(">>> ", "").replace("Usr ", "")
        assert (folder / "talk.txt").read_text(encoding="utf-8") == saved and saved.count("\t") == 3


@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_what_a_terminal_cannot_show_is_written_as_json_does(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    (folder / "smile.txt").write_text("你好😀é\t好\n", encoding="utf-8")
    for command in ("generate model --input smile.txt max_new_tokens=1", "data inspect smile.txt --json"):
        monkeypatch.setattr(sys, "stdout", shown := io.TextIOWrapper(io.BytesIO(), encoding))
        ran = run(command)
        shown.flush()
        printed = shown.buffer.getvalue().decode(encoding)
        assert (ran.code == 0 and r"\ud83d\ude00\u00e9" in printed) or encoding == "gbk"
        said = json.loads(printed)
        assert (said["prompt"] if "prompt" in said else "\t".join(said["samples"][0])) == "你好😀é\t好"
    assert run("data inspect smile.txt").code == 0


def test_a_prompt_may_begin_with_a_dash(run) -> None:
    ran = run("generate model --json max_new_tokens=1 -- -5度")
    assert (ran.code, json.loads(ran.out)["prompt"]) == (0, "-5度")


@pytest.mark.parametrize(
    ("option", "setting"),
    [("--max-length", "max_new_tokens"), ("--max-new-tokens", "max_new_tokens"), ("--temperature", "temperature")],
)
@pytest.mark.parametrize("command", ["generate model 你好", "chat model", "serve model"])
def test_a_setting_that_was_taken_for_an_option_is_shown_as_one(run, command: str, option: str, setting: str) -> None:
    ran = run(f"{command} {option} 5")
    assert ran.code == 2 and f"{setting}=…" in " ".join(ran.err.split())
    assert "Possible options" not in ran.err


AGAIN = ("evaluation.suites.runner", "evaluation.engine.candidates")


@pytest.mark.parametrize(
    ("command", "package", "extra", "again"),
    [
        ("train sft model test.txt out lora.rank=2", "peft", "train", ()),
        ("train sft model test.txt out", "accelerate", "train", ("training.trainer", "training.stages.sft")),
        ("eval clue model --data none --tasks afqmc", "accelerate", "train", AGAIN),
        ("serve model", "uvicorn", "serve", ("serving.server",)),
    ],
)
def test_a_missing_package_is_named_with_what_brings_it(
    run, monkeypatch: pytest.MonkeyPatch, command: str, package: str, extra: str, again: tuple[str, ...]
) -> None:
    """``pip install hanmo`` alone; modules that are ``again`` imported would meet it."""
    for name in {package, *(name for name in sys.modules if name.partition(".")[0] == package)}:
        monkeypatch.setitem(sys.modules, name, None)
    for name in again:
        monkeypatch.delitem(sys.modules, f"hanmo.{name}", raising=False)
    ran = run(command)
    assert (ran.code, ran.err) == (2, f"hanmo: this needs the package {package}: pip install 'hanmo[{extra}]'\n")


def test_a_turn_that_the_model_has_not_seen_is_said(run) -> None:
    chat = "chat model --limit 8 max_new_tokens=2"
    assert "it has seen none of it" in run(chat, ("谢" * 20).encode()).err
    assert "it has seen none of it" not in run(chat, "谢谢".encode()).err


def test_scores_go_where_they_are_told(run, folder: Path) -> None:
    printed = run("reward score reward test.txt").out
    assert [json.loads(line)["answer"] for line in printed.splitlines()] == ["我很好", "再见"]
    assert run("reward score reward test.txt --out scores.jsonl").err == "2 scores in scores.jsonl\n"
    assert (folder / "scores.jsonl").read_text(encoding="utf-8") == printed


@pytest.mark.parametrize("command", ["generate model \udcc4\udce3", "inspect \udcff", "chat model --system \udcc4"])
def test_an_argument_that_is_not_utf8_is_one_message(run, command: str) -> None:
    """As Python reads bytes of a terminal that uses GBK; they were a traceback of the tokenizer, or of printing."""
    ran = run(command)
    assert (ran.code, ran.out) == (2, "")
    assert "not UTF-8; type it in a terminal that uses UTF-8" in ran.err and "Traceback" not in ran.err


def test_what_is_piped_in_another_encoding_is_one_message_where_the_locale_is_c(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python then reads bytes that are not UTF-8 as halves of characters."""
    wrapper = io.TextIOWrapper
    monkeypatch.setattr(io, "TextIOWrapper", lambda file, encoding: wrapper(file, encoding, "surrogateescape"))
    refused = run("generate model", LINES.encode("gb18030"))
    assert refused.code == 2 and "standard input is not UTF-8" in refused.err


@pytest.mark.parametrize(
    ("command", "size", "place"),
    [
        ("data clean many.txt --out clean.jsonl", 2000, "clean.jsonl"),
        ("data tokenize many.txt --tokenizer model --out store", 2000, "store"),
        ("data corpus corpus --size 5", 2000, "corpus/train.jsonl"),
        ("data inspect test.txt --page page.html", 2000, "page.html"),
        ("eval human-prepare a=pairs.jsonl --output human", 2000, "human/rater1.html"),
        ("eval dialogue model test.txt --output results max_new_tokens=2", 2000, "results/report.html"),
        ("generate model --input many.txt --output replies.jsonl max_new_tokens=2", 2000, "replies.jsonl"),
        ("convert model converted", 10, "tmp"),
        ("convert model converted", 2000, "converted: cannot be written"),
        (
            "train sft model test.txt trained trainer.report_to=none trainer.max_steps=1",
            9000,
            "checkpoint-1: cannot be saved",
        ),
        (
            "train sft model test.txt other trainer.report_to=none trainer.max_steps=1 trainer.save_strategy=no",
            9000,
            "other/model: cannot",
        ),
    ],
)
def test_a_full_disk_is_one_message_and_leaves_no_half_file(run, folder: Path, command, size, place) -> None:
    (folder / "many.txt").write_text(LINES * 200, encoding="utf-8")
    (folder / "pairs.jsonl").write_text('{"prompt": "你好", "response": "好"}\n', encoding="utf-8")
    with processes.no_file_above(size):
        ran = run(command)
    assert ran.code == 2 and "Traceback" not in ran.err
    message = ran.err.splitlines()[-1]
    assert message.startswith("hanmo: ") and place in message and "File too large" in message
    for target in ("clean.jsonl", "page.html", "replies.jsonl", "converted", "trained/model", "other/model"):
        assert not (folder / target).exists()
    assert not list(folder.rglob("*.tmp"))


def test_a_file_whose_name_is_not_utf8_is_named_in_results(run, folder: Path) -> None:
    (folder / "odd").mkdir()
    (folder / "odd" / b"\xff.bin".decode("utf-8", "surrogateescape")).touch()
    shown, as_json = run("inspect odd"), run("inspect odd --json")
    assert (shown.code, as_json.code) == (1, 1)
    assert "found \\udcff.bin" in shown.out
    assert "found \udcff.bin" in json.loads(as_json.out)["checks"][0]["detail"]


def test_where_no_answers_can_be_kept_an_evaluation_goes_on_and_says_so(run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run("eval perplexity model test.txt")
    monkeypatch.setenv("XDG_CACHE_HOME", "test.txt/cache")
    ran = run("eval perplexity model test.txt")
    assert (ran.code, ran.out) == (0, kept.out)
    assert "answers are not kept" in ran.err and "--output or XDG_CACHE_HOME" in ran.err


@pytest.mark.parametrize(
    "command", ["data clean test.txt --out shut/a.jsonl", "eval human-prepare a=once.jsonl --output shut"]
)
def test_what_must_not_be_written_is_named_as_the_user_did(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Under root nothing is forbidden, so the system's refusal is pretended: of drafts and locks in one folder."""
    shut, opened = (folder / "shut").resolve(), os.open
    shut.mkdir(exist_ok=True)
    (folder / "once.jsonl").write_text('{"prompt": "你好", "response": "好"}\n', encoding="utf-8")

    def refused(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if shut in Path(path).resolve().parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(Path, "write_bytes", lambda path, _: os.close(refused(path, os.O_WRONLY | os.O_CREAT)))
    ran = run(command)
    assert ran.code == 2 and re.fullmatch(
        r"hanmo: \S*shut/\w+\.\w+: Permission denied; change its permissions, or name another place\n", ran.err
    )
