"""Decoding, talking and scoring on a pretended device: nothing mixes devices, and the values are the CPU's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hanmo.checkpoints import open_model
from hanmo.checkpoints.open import find_rule_files
from hanmo.cli import app
from hanmo.errors import ConfigError
from hanmo.evaluation import perplexity
from hanmo.evaluation.engine.candidates import score_candidates
from hanmo.evaluation.suites.clue.published_scores import published_score
from hanmo.families.base import OpenedModel
from hanmo.families.eva.family import EvaFamily
from hanmo.generation.chat import ChatSession
from hanmo.generation.decode import generate
from hanmo.generation.engine import Engine
from hanmo.generation.settings import Settings
from hanmo.nn.row_model import attach_value_head, evaluating
from hanmo.records import Dialogue, PromptResponse
from hanmo.training.rl.rewards import score_records
from tests.devices.pretended import pretended, traffic
from tests.golden.make import FOLDER
from tests.unit.tiny import NAMES

TALKS = (Dialogue(("你好", "谢谢你", "明天去哪里玩？")), Dialogue(("三加五等于几？",)))
ANSWERED = (PromptResponse("今天天气怎么样？", "今天天气真不错。"), PromptResponse("你好", "谢谢你，再见！"))
GREEDY = Settings(do_sample=False, max_new_tokens=6, min_new_tokens=3)
DECODING = {
    "greedy": GREEDY.change(repetition_penalty=1.3, no_repeat_ngram_size=2, suppressed_ids=(9, 12)),
    "sampled": GREEDY.change(do_sample=True, top_k=20, top_p=0.9, temperature=0.8, seed=1),
    "beams": GREEDY.change(num_beams=3, length_penalty=0.8),
    "sampled beams": GREEDY.change(do_sample=True, num_beams=2, seed=1),
}


def opened_on(family: str, device: Any, rules: Path | None = None) -> OpenedModel:
    opened = open_model(FOLDER / family, dtype="fp32", device=device)
    if rules is not None:
        opened.family.assets.update(find_rule_files(EvaFamily, rules))
    return opened


def used(opened: OpenedModel) -> dict[str, Any]:
    """Replies as ids, and everything that is scored as numbers."""
    family, network = opened.family, opened.network
    contexts = [family.context(talk, 64) for talk in TALKS]
    replies = {name: [one.ids for one in generate(opened, contexts, how)] for name, how in DECODING.items()}
    session = ChatSession(opened, GREEDY.change(do_sample=True, seed=3), 64)
    replies["chat"] = [session.reply(text).ids for text in ("你好", "明天去哪里玩？")]
    questions = [
        family.cloze("今天天气", ["真不错", "很好，我们去玩", "真好"], "。"),
        family.cloze("三加五等于", ["八", "九"], "。"),
    ]
    scores: dict[str, Any] = {
        "perplexity": [one.nll for one in perplexity.evaluate(opened, ANSWERED, limit=64).records],
        "candidates": [[one.nll for one in each] for each in score_candidates(opened, questions)],
    }
    if getattr(network, "trees_are_exact", False):
        network.trees_are_exact = False  # the other way to the same scores: candidates go on from a kept state
        scores["continued"] = [[one.nll for one in each] for each in score_candidates(opened, questions, budget=4096)]
    torch.manual_seed(0)
    attach_value_head(network, "linear")
    scores["rewards"] = score_records(opened, ANSWERED, 64)
    return {"replies": replies, "scores": scores}


def close(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("kind", ["cuda", pytest.param("mps", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", NAMES)
def test_decoding_and_scoring(family: str, kind: str, tmp_path: Path) -> None:
    rules = None
    if family == "eva":
        rules = tmp_path
        (rules / "antonym").mkdir()
        (rules / "antonym" / "antonym.txt").write_text("('好', '再')\n('天', '火')\n", encoding="utf-8")
    expected = used(opened_on(family, "cpu", rules))
    with pretended(kind) as device:
        opened = opened_on(family, None if kind == "cuda" else "mps", rules)  # CUDA is taken where there is one
        assert opened.network.device == device
        found = used(opened)
    assert found["replies"] == expected["replies"]
    assert found["scores"].keys() == expected["scores"].keys()
    for name, values in expected["scores"].items():
        assert close(found["scores"][name], values), name


def joined(opened: OpenedModel, rows: int | None) -> list[list[int]]:
    """Replies that join and leave: sampled, greedy and by beams, the later ones from a prompt that was read before."""
    engine = Engine(opened, most_rows=6, rows=rows, cache_bytes=1 << 26)
    ways = [*DECODING.values(), DECODING["sampled"].change(seed=2, max_new_tokens=12)]
    groups = []
    with evaluating(opened.network):
        for number, how in enumerate(ways * 2):
            groups.append(engine.add([opened.family.context(TALKS[number % 2], 64)], how))
            engine.step()
        while not engine.idle:
            engine.step()
    assert not any(group.error for group in groups)
    return [group.replies[0].ids for group in groups]


@pytest.mark.parametrize("family", NAMES)
def test_replies_that_join_and_leave(family: str) -> None:
    opened = opened_on(family, "cpu")
    expected = joined(opened, None), joined(opened, 3)
    with pretended("cuda"):
        opened = opened_on(family, None)
        assert (joined(opened, None), joined(opened, 3)) == expected


WAYS = {
    "sampled": (Settings(seed=1, top_k=20, top_p=0.9, temperature=1.2), 1),
    "greedy": (Settings(do_sample=False), 1),
    "beams": (Settings(num_beams=4, do_sample=False), 4),  # and the rows that go on, their scores, and ids of a rule
    "rules": (
        Settings(seed=1, repetition_penalty=1.3, no_repeat_ngram_size=3, min_new_tokens=5),
        3,
    ),  # and ids of two rules
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", NAMES)
def test_a_step_waits_once_and_copies_no_more_than_it_must(family: str, way: str) -> None:
    how, most = WAYS[way]
    how = how.change(max_new_tokens=8, suppressed_ids=(), min_new_tokens=8)
    if way in ("sampled", "greedy"):
        how = how.change(min_new_tokens=0)
    with pretended("cuda"):
        opened = opened_on(family, None)
        engine = Engine(opened)
        engine.add([opened.family.context(TALKS[0], 64)], how)
        counted = []
        with evaluating(opened.network):
            while not engine.idle:
                traffic()
                engine.step()
                counted.append(traffic())
    steps = counted[3:]  # the first ones read the prompt and put the state into slots
    assert steps or (family, way) == ("huggingface", "sampled")  # whose reply ends at once
    assert all(step["waits"] == 1 for step in steps)
    assert all(step["copies"] <= most + (family == "eva") for step in steps), (
        counted
    )  # EVA never says [UNK]: one rule more


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_published_clue_score(kind: str) -> None:
    """It is exact to float64, which mps has not."""
    generator = torch.Generator().manual_seed(0)
    logits_TV, ids_T = torch.randn(5, 40, generator=generator) * 8, torch.tensor([3, 9, 1, 0, 7])
    expected = published_score(logits_TV, ids_T, 0)
    with pretended(kind) as device:
        assert published_score(logits_TV.to(device), ids_T.to(device), 0) == expected


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps", "xpu", "meta", "banana"])
def test_a_device_that_is_not_there_is_one_message(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.empty

    def absent(*args: Any, **kwargs: Any) -> torch.Tensor:  # wherever the test runs
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type not in ("cpu", "meta"):
            raise RuntimeError("no such thing. It would say much more.\nAnd more")
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", absent)
    with pytest.raises(ConfigError, match=rf"device={device}: .*(expected|give another --device)") as error:
        open_model(FOLDER / "pangu", device=device)
    assert "\n" not in str(error.value) and "much more" not in str(error.value)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_command_takes_the_device(kind: str) -> None:
    asked = ["generate", str(FOLDER / "pangu"), "你好", "--seed", "1", "--device"]
    with pretended(kind):
        found = CliRunner().invoke(app, [*asked, kind])
    assert found.exit_code == 0, found.output
    assert found.stdout == CliRunner().invoke(app, [*asked, "cpu"]).stdout
