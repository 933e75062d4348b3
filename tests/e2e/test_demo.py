"""The main job as a user runs it. Its time is printed and not asserted: other work may share the machine."""

import json
import sys
import time

import pytest
import torch

from hanmo.checkpoints import open_model
from hanmo.demo.model import DECODING, LIMIT
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue
from hanmo.rows import IGNORE, collate
from tests import processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    start = time.monotonic()
    run = hanmo("demo", "--json", cwd=folder)
    print(f"\nhanmo demo took {time.monotonic() - start:.0f} s (to be under 480 on two idle cores)")
    return folder, json.loads(run.stdout)


def hanmo(*arguments, cwd, said=None):
    command = [sys.executable, "-m", "hanmo", *arguments]
    run = processes.run(command, cwd=cwd, input=said, timeout=3000)
    assert run.returncode == 0, run.stderr
    return run


def test_eight_of_ten_openings_get_a_fitting_reply(made):
    _, result = made
    wrong = [opening for opening in result["after"]["openings"] if not opening["fits"]]
    assert result["openings"] == 10 and result["openings_fitting"] >= 8, wrong
    assert "你好" in {opening["prompt"] for opening in result["after"]["openings"]}


def test_held_out_combinations_are_answered_much_better_than_before(made):
    _, result = made
    before, after = result["before"], result["after"]
    assert before["held_out"]["exact"] < 1 and after["held_out"]["exact"] > 60
    assert after["held_out"]["f1"] > before["held_out"]["f1"] + 40
    improved = [topic for topic, values in after["topics"].items() if values["f1"] > before["topics"][topic]["f1"] + 20]
    assert len(improved) >= 0.8 * len(after["topics"])


def test_the_published_table_moves_the_right_way(made):
    _, result = made
    for reading in ("published", "corrected"):
        before, after = result["before"][reading], result["after"][reading]
        assert after["loss"] < before["loss"] - 3
        assert after["bleu-4"] > before["bleu-4"] + 20
        assert after["f1"] > before["f1"] + 40


def test_the_model_chats_from_a_pipe(made):
    """Without a name the demo's model is opened; decoding is as it was measured, so the replies are the same."""
    folder, result = made
    for opening in result["after"]["openings"][:3]:
        run = hanmo("chat", cwd=folder, said=f"{opening['prompt']}\n")
        assert opening["reply"] in run.stdout


def test_the_report_stands_alone(made):
    folder, result = made
    page = (folder / result["report"]).read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    start = time.monotonic()
    run = hanmo("demo", "--quick", "--json", cwd=folder)
    print(f"\nhanmo demo --quick took {time.monotonic() - start:.0f} s (to be under 180 on two idle cores)")
    return folder, json.loads(run.stdout)


@pytest.mark.parametrize("run", ["made", "quick"])
def test_the_second_part_raises_the_held_out_reward(run, request):
    folder, result = request.getfixturevalue(run)
    found = result["alignment"]
    assert found["accuracy"] > 0.85  # guessing: 0.5
    assert found["reward_after"] > found["reward_before"] + 0.5
    assert found["asking_after"] > found["asking_before"] + 0.4
    assert found["openings_fitting"] >= min(8, result["openings_fitting"])
    assert (folder / "runs" / "demo" / "aligned" / "config.json").is_file()


def test_alignment_unlearns_no_stop_and_hardly_a_reply_runs_to_the_limit(made):
    """DPO also pushes at the stop of rejected replies; after a fact and an unwanted question it must stay likely."""
    folder, _ = made
    opened = open_model(folder / "runs" / "demo" / "aligned", device="cpu")
    family, network = opened.family, opened.network
    lines = (folder / "runs" / "demo" / "pairs" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    facts = [Dialogue((*one["prompt"], one["rejected"])) for one in pairs if one["rejected"].startswith(one["chosen"])]
    batch = collate([family.row(family.parts(record, LIMIT)[0]) for record in facts], family.padding)
    with torch.no_grad():
        logprob_BA = network(**batch).logprob
    last_B = (batch["labels"] != IGNORE).sum(1) - 1
    stops = logprob_BA[torch.arange(len(facts)), last_B].exp()
    assert bool((batch["labels"][torch.arange(len(facts)), last_B] == family.stop_id).all())
    assert len(facts) > 200 and stops.mean() > 0.95
    contexts = [family.context(Dialogue(tuple(one["prompt"])), LIMIT) for one in pairs]
    endless = [one for one in generate(opened, contexts, Settings(**DECODING)) if not one.finished]
    assert len(endless) <= 1, [family.decode(one.ids) for one in endless]
