import json
import re
import signal
import subprocess
import sys
from html import escape, unescape
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from hanmo.checkpoints import open_model
from hanmo.cli import app
from hanmo.demo import examine as examining
from hanmo.demo.display import Display
from hanmo.demo.examine import OPENINGS
from hanmo.demo.model import DECODING, new_model
from hanmo.demo.run import demo
from hanmo.errors import ConfigError
from hanmo.records import Dialogue
from tests import processes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The whole of the demo, with a handful of steps."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    for name in ("corpus/old.txt", "mine/notes.txt"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("from before")
    (folder / "results.json").write_text("{}")
    return folder, demo(folder, seed=1, steps=3, per_topic=2, align_steps=1)


def test_it_leaves_a_model_and_nothing_of_the_way(made):
    folder, _ = made
    assert {path.name for path in folder.parent.iterdir()} == {"out"}
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "vocab.txt", "report.html", "results.json", "metrics.jsonl"} <= names
    assert not {"new", "sft", "reward", "dpo"} & names and not (folder / "corpus" / "old.txt").exists()
    assert (folder / "mine" / "notes.txt").read_text() == "from before"  # not the demo's
    assert open_model(folder / "aligned").network.value_head is None
    opened = open_model(folder)
    assert opened.network.config.decoding == DECODING
    assert not torch.equal(opened.network.lm_head.weight, opened.network.word_embeds.weight)  # untied


def test_its_numbers_are_those_of_its_replies(made):
    folder, result = made
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(result.as_dict(), ensure_ascii=False))
    samples = [sample for found in result.after.topics.values() for sample in found]
    assert stored["after"]["held_out"]["dialogues"] == len(samples) == len(result.after.result.samples)
    assert stored["openings"] == len(OPENINGS)
    assert stored["openings_fitting"] == sum(entry["fits"] for entry in stored["after"]["openings"])
    assert stored["after"]["corrected"]["loss"] < stored["before"]["corrected"]["loss"]  # three steps do teach


def test_the_report_holds_what_was_said(made):
    folder, result = made
    page = (folder / "report.html").read_text(encoding="utf-8")
    for opening in OPENINGS:
        assert opening.prompt in page
    for needed in (
        "BLEU-4",
        "Dist-4",
        "F1",
        "What it cannot do",
        "<svg",
        "Learning from preferences",
        *(escape(one.prompt) for one in result.alignment.talk[0][:1]),
        *result.after.topics,
        *map(escape, result.beyond[0]),
    ):
        assert needed in page, needed


def test_every_turn_of_the_model_is_marked_in_every_conversation_of_the_report(made):
    folder, result = made
    page = (folder / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r"<div class='turn (\w*)'>(.*?)</div>", page, re.DOTALL)
    turns = [turn for talk in (*result.conversations, *result.beyond) for turn in enumerate(talk)]
    assert [(kind, unescape(text)) for kind, text in shown] == [
        ("reply" if place % 2 else "", turn) for place, turn in turns
    ]


def test_cross_attention_begins_as_a_copy_of_what_it_sees(tmp_path):
    network = new_model([Dialogue(("你好", "你好"))], tmp_path, seed=0).network
    for block in network.decoder.blocks:
        product = block.cross.o_proj.weight @ block.cross.v_proj.weight
        assert torch.allclose(product, torch.eye(len(product)), atol=1e-5)


def test_the_head_begins_in_the_embedding_s_directions(tmp_path):
    network = new_model([Dialogue(("你好", "你好"))], tmp_path, seed=0).network
    cosine = torch.cosine_similarity(network.word_embeds.weight, network.lm_head.weight)
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-5)
    assert network.lm_head.weight is not network.word_embeds.weight


def test_the_seed_decides_the_weights(tmp_path):
    dialogues = [Dialogue(("你好", "你好"))]
    one, same, other = (new_model(dialogues, tmp_path, seed).network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_exact_and_f1_by_hand():
    samples = [
        SimpleNamespace(generation=said, response=expected) for said, expected in (("八", "八"), ("是八", "是九"))
    ]
    assert examining.exact(samples) == 50.0
    assert examining.f1(samples) == 75.0  # 1 and 1/2


def test_without_a_terminal_stages_and_tenths_are_lines(capsys):
    with Display() as show:
        with show.stage("short") as update:
            update(5, 10, "halfway")
        with show.stage("long") as update:
            for done in range(1, 2001):
                update(done, 2000, f"step {done}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("short: ") and lines[0].endswith(" s, halfway")
    assert [line.split(",")[0] for line in lines[1:-1]] == [f"long: step {tenth * 200}" for tenth in range(1, 10)]
    assert lines[-1].endswith("step 2000") and set(show.seconds) == {"short", "long"}


def test_ctrl_c_leaves_what_was_there_before(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "results.json").write_text("of an earlier run")
    command = [sys.executable, "-m", "hanmo", "demo", "--output", str(folder), "--steps", "100000"]
    with processes.started(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        processes.wait_until(process, lambda: any(path.is_dir() for path in tmp_path.glob(".out*")))  # the draft
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in folder.iterdir()] == ["results.json"]
    assert (folder / "results.json").read_text() == "of an earlier run"


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"not made by hanmo demo.*--output"):
        demo(tmp_path, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_quick_and_steps_are_two_answers_to_one_question() -> None:
    done = CliRunner().invoke(app, ["demo", "--quick", "--steps", "5"])
    assert isinstance(done.exception, ConfigError) and "not both" in str(done.exception)
