"""Whatever a file claims, the program says so in one message, within 10 seconds and 1 GB, and nothing in it runs."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hanmo.checkpoints import open_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.files import find_weights
from hanmo.checkpoints.verifying import verify_reading
from hanmo.errors import CheckpointError
from hanmo.limits import tried
from tests.hostile import command, run
from tests.unit.checkpoint_files import HUB, original_tensors, write_hub
from tests.unit.hostile_files import FOLDERS, HONEST, ORIGINALS, TEMPLATES, WEIGHTS, deflated
from tests.unit.transformers_models import write_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3", tmp_path_factory.mktemp("qwen") / "model")


def commands(folder: Path, target: Path) -> dict[str, Callable[[], object]]:
    return {
        "inspect": lambda: command("inspect", folder),
        "convert": lambda: command("convert", folder, target),
        "open": lambda: open_model(folder, device="cpu"),
    }


def check_refused(folder: Path, tmp_path: Path) -> None:
    """Each way to read a folder ends in a message, and a conversion leaves nothing behind."""
    target = tmp_path / "target"
    for name, action in commands(folder, target).items():
        outcome = run(action, canary=tmp_path / "executed")
        assert outcome.kind == "message", f"{name}: {outcome}"
        assert len(outcome.printed) < 20_000, f"{name}: {outcome}"
    assert not target.exists()


@pytest.mark.parametrize("kind", ORIGINALS)
def test_an_original_that_lies_is_refused_in_one_message(original: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(original, tmp_path / "model")
    ORIGINALS[kind](folder)
    check_refused(folder, tmp_path)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_lies_is_refused_in_one_message(qwen: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(qwen, tmp_path / "model")
    FOLDERS[kind](folder)
    check_refused(folder, tmp_path)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_chat_template_that_takes_too_much_is_refused_in_one_message(qwen: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(qwen, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATES[kind])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("你好\n", encoding="utf-8")
    outcome = run(lambda: command("generate", folder, "--input", prompts, "--device", "cpu"), tmp_path / "executed")
    assert outcome.kind == "message", str(outcome)
    assert "chat template" in outcome.printed


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_original_in_an_unusual_form_gives_the_same_weights(
    original: Path, tmp_path: Path, kind: str
) -> None:
    """Converted with --verify, the tensors are those that went in, to the bit; so they are when it is opened."""
    folder = shutil.copytree(original, tmp_path / "model")
    HONEST[kind](folder)
    convert(folder, tmp_path / "target", verify=True)
    back = convert(tmp_path / "target", tmp_path / "back", to="original")
    written = torch.load(tmp_path / "back" / back["files"][0], weights_only=True)
    wanted = original_tensors(HUB)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    embedding = open_model(folder, device="cpu").network.get_input_embeddings().weight
    assert torch.equal(embedding, open_model(original, device="cpu").network.get_input_embeddings().weight)


def test_verify_notices_tensors_that_are_not_what_the_file_holds(original: Path, tmp_path: Path) -> None:
    """A reader that maps the wrong bytes, here simulated by changing one number after reading, is found out."""
    weights = find_weights(original)
    verify_reading(weights)
    name = next(iter(weights.ranks[0]))
    weights.ranks[0][name] = weights.ranks[0][name].clone()
    weights.ranks[0][name].view(-1)[0] += 1
    with pytest.raises(CheckpointError, match=f"{name} was not read as the file holds it"):
        verify_reading(weights)


def test_verify_notices_mapped_bytes_of_a_compressed_file(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of old: compressed members mapped as if they were stored."""
    folder = shutil.copytree(original, tmp_path / "model")
    deflated(folder)
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **given: load(path, **{**given, "mmap": True}))
    with pytest.raises(CheckpointError):
        convert(folder, tmp_path / "target", verify=True)
    assert not (tmp_path / "target").exists()


def test_ctrl_c_ends_what_is_tried_and_its_process(tmp_path: Path) -> None:
    """The process that tries does not see Ctrl-C; the one that waits ends it."""
    process_file = tmp_path / "process"

    def endless() -> None:
        process_file.write_text(str(os.getpid()))
        while True:
            time.sleep(1)

    def interrupted() -> None:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            tried(endless, "a file")
        except KeyboardInterrupt:
            print("stopped")
            raise SystemExit(3) from None

    outcome = run(interrupted, canary=tmp_path / "executed")
    assert outcome.printed == "stopped\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(process_file.read_text()), 0)


def test_code_that_runs_would_be_noticed(tmp_path: Path) -> None:
    """The harness itself: each kind of end is told apart."""
    canary = tmp_path / "executed"
    assert run(lambda: print("done"), canary).kind == "fine"
    assert run(lambda: command("inspect", tmp_path / "nothing"), canary).kind == "message"
    assert run(lambda: 1 // 0, canary).kind == "traceback"
    assert run(lambda: [bytearray(b"a" * (1 << 28)) for _ in range(5)], canary).kind == "memory"
    assert run(lambda: os.abort(), canary).kind == "crashed"
    assert run(lambda: os.kill(os.getpid(), signal.SIGXCPU), canary).kind == "hung"
    assert run(canary.touch, canary).kind == "executed"


def test_the_makers_change_what_they_say(original: Path, tmp_path: Path) -> None:
    """Every lie is in the file: none of the makers leaves the honest weights and settings as they were."""
    for number, make in enumerate(ORIGINALS.values()):
        folder = shutil.copytree(original, tmp_path / str(number))
        make(folder)
        same = [
            (folder / name).is_file() and (folder / name).read_bytes() == (original / name).read_bytes()
            for name in (WEIGHTS, "config.json")
        ]
        assert not all(same)
