"""Drawn replies belong to (seed, place, step): to no batch, row, company, process or device."""

import json
from collections import Counter
from contextlib import nullcontext
from hashlib import blake2b
from math import log1p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hanmo.checkpoints import save_model
from hanmo.cli import app
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.draws import Place, exponential, placed_sampler
from hanmo.generation.settings import Settings
from hanmo.records import PromptResponse
from hanmo.rows import Context
from hanmo.training.rl.policy import PolicyTrainer
from hanmo.training.rl.rollout import OwnEngine, question
from tests.searching import stream
from tests.unit.tiny import tiny

CPU = torch.device("cpu")
PROMPTS = ["你好", "今天天气真不错明天去哪里玩", "你好", "谢谢", "你好", "再见我很好", "你好", "你好"]
WARM = Settings(max_new_tokens=8, temperature=1.5, seed=5)
WAYS = [WARM, WARM.change(num_beams=3), WARM.change(top_k=8, top_p=0.9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return tiny("pangu", tmp_path_factory.mktemp("pangu"))


def contexts(model: OpenedModel, texts: list[str]) -> list[Context]:
    return [model.family.context(PromptResponse(text, ""), 64) for text in texts]


def splitmix64(state: int) -> Any:
    """The generator as Steele et al. print it, in Python's own whole numbers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
        yield mixed ^ (mixed >> 31)


def test_the_noise_is_that_of_splitmix64() -> None:
    numbers = splitmix64(1234567)
    assert [next(numbers), next(numbers)] == [6457827717110365317, 3203168211198807973]  # published test vector
    for step in (0, 7):
        numbers = splitmix64(1234567)
        start = [next(numbers) for _ in range(step + 1)][-1]
        counted = splitmix64(start)
        uniform = [((next(counted) >> 11) + 0.5) / 2**53 for _ in range(50)]
        expected = -torch.tensor(uniform, dtype=torch.float64).neg().log1p()
        found = exponential(torch.tensor([99, 1234567]), step, 50)[1]
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("settings", WAYS, ids=["sampled", "beams", "filtered"])
def test_a_reply_is_the_same_alone_and_in_company(settings: Settings, model: OpenedModel) -> None:
    asked = contexts(model, PROMPTS)
    together = [one.ids for one in generate(model, asked, settings)]
    alone = [generate(model, [one], settings, places=[Place(at)])[0].ids for at, one in enumerate(asked)]
    assert together == alone
    backwards = list(range(len(asked)))[::-1]
    found = generate(model, [asked[at] for at in backwards], settings, places=[Place(at) for at in backwards])
    assert [one.ids for one in found] == together[::-1]
    same = {together[at] for at, text in enumerate(PROMPTS) if text == "你好"}
    assert len(same) > 1 if settings.num_beams > 1 else len(same) == PROMPTS.count("你好")  # beams look for the best
    assert tuple(stream(model, asked[0], settings)) == together[0]
    assert [one.ids for one in generate(model, asked, settings.change(seed=6))] != together


def test_choices_and_blanks_have_draws_of_their_own(model: OpenedModel) -> None:
    [asked] = contexts(model, ["你好"])
    places = [Place(0), Place(1), Place(0, 1), Place(0, 2), Place(0, 0, 1), Place(1, 1)]
    said = [one.ids for one in generate(model, [asked] * 6, WARM, places=places)]
    assert len(set(said)) == 6
    assert len({ids[0] for ids in said}) > 1


def test_no_seed_is_a_new_one_every_time(model: OpenedModel) -> None:
    asked = contexts(model, ["你好"])
    assert len({generate(model, asked, WARM.change(seed=None))[0].ids for _ in range(3)}) == 3


@pytest.mark.parametrize("varies", ["place", "choice", "step", "seed"])
def test_draws_follow_the_probabilities(varies: str) -> None:
    """Chi-square over 20,000 draws, whatever is counted up: below the 99.99 % quantile of 9 degrees of freedom."""
    probs = torch.tensor([0.3, 0.0, 0.2, 0.15, 0.1, 0.08, 0.07, 0.05, 0.03, 0.015, 0.005])
    count, drawn = 20_000, Counter[int]()
    if varies in ("place", "choice"):
        places = [Place(at) if varies == "place" else Place(3, at) for at in range(count)]
        draw = placed_sampler(1, places, CPU)
        drawn.update(draw(0, range(count), probs.expand(count, -1), 1)[:, 0].tolist())
    elif varies == "step":
        draw = placed_sampler(1, [Place(0)], CPU)
        drawn.update(draw(step, [0], probs[None], 1).item() for step in range(count))
    else:
        drawn.update(placed_sampler(s, [Place(0)], CPU)(0, [0], probs[None], 1).item() for s in range(count))
    expected = probs * count
    statistic = sum((drawn[at] - want) ** 2 / want for at, want in enumerate(expected.tolist()) if want)
    assert drawn[1] == 0 and statistic < 33.72


def test_draws_without_replacement_have_the_right_order() -> None:
    """First a with p_a, then b with p_b / (1 - p_a): chi-square over the six ordered pairs."""
    probs, count = torch.tensor([0.5, 0.3, 0.2]), 20_000
    draw = placed_sampler(2, [Place(at) for at in range(count)], CPU)
    pairs = Counter(map(tuple, draw(0, range(count), probs.expand(count, -1), 2).tolist()))
    expected = {
        (a, b): count * probs[a].item() * probs[b].item() / (1 - probs[a].item())
        for a in range(3)
        for b in range(3)
        if a != b
    }
    assert pairs.keys() == expected.keys()
    assert sum((pairs[pair] - want) ** 2 / want for pair, want in expected.items()) < 25.74  # 99.99 %, 5 degrees


def test_a_draw_by_hand() -> None:
    """The key of a reply is the hash of seed and place; its draw is the race of probability by exponential noise."""
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 2)
    places = [Place(3), Place(0, 2)]
    for step in range(5):
        drawn = placed_sampler(7, places, CPU)(step, [0, 1], probs, 2)
        for place, found in zip(("3 0 0", "0 2 0"), drawn.tolist(), strict=True):
            numbers = splitmix64(int.from_bytes(blake2b(f"7 {place}".encode(), digest_size=8).digest(), "little"))
            counted = splitmix64([next(numbers) for _ in range(step + 1)][-1])
            noise = [-log1p(-((next(counted) >> 11) + 0.5) / 2**53) for _ in range(4)]
            times = [noise[token] / probs[0, token].item() for token in range(4)]
            assert found == sorted(range(4), key=times.__getitem__)[:2]


def test_a_sure_token_is_drawn_and_an_impossible_one_never() -> None:
    probs = torch.tensor([0.0, 1.0, 0.0]).expand(5000, -1)
    assert placed_sampler(0, [Place(at) for at in range(5000)], CPU)(0, range(5000), probs, 1).unique().tolist() == [1]


def test_five_copies_in_a_file_are_five_replies_at_every_batch_size(model: OpenedModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("你好\n\n你好\n今天天气真不错\n你好\n你好\n你好\n", encoding="utf-8")
    said = []
    for size in (1, 2, 5):
        arguments = f"--seed 7 --batch-size {size} max_new_tokens=8 --device cpu --dtype fp32"
        command = ["generate", str(tmp_path / "model"), "--input", str(tmp_path / "prompts.txt"), *arguments.split()]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        said.append([json.loads(line)["generation"] for line in result.stdout.splitlines()])
    assert said[0] == said[1] == said[2]
    assert len({*said[0][:2], *said[0][3:]}) == 5
    single = ["generate", str(tmp_path / "model"), "你好", "--json", *arguments.split()[:2], *arguments.split()[4:]]
    assert json.loads(CliRunner().invoke(app, single).stdout)["generation"] == said[0][0]  # place 0


@pytest.mark.parametrize("group", [1, 4])
def test_rollouts_are_the_same_in_any_batches_and_processes(group: int, model: OpenedModel) -> None:
    """A round's replies over 1, 2 and 4 processes, decoded 3 or 16 at a time; those of the next round are others."""
    questions = [question(PromptResponse(text, ""), model, 64) for text in PROMPTS]

    def replies(world: int, at_once: int, round_: int = 0) -> Counter[tuple[Any, ...]]:
        found: Counter[tuple[Any, ...]] = Counter()
        for rank in range(world):
            trainer = SimpleNamespace(
                args=SimpleNamespace(world_size=world, process_index=rank, seed=11),
                config=SimpleNamespace(samples=8 * group), group=group, questions=questions, round=round_,
                settings=WARM, engine=OwnEngine(model, at_once), opened=model,
                accelerator=SimpleNamespace(autocast=nullcontext), seconds={"rollout": 0.0},
            )  # fmt: skip
            made = PolicyTrainer._replies(trainer, range(rank, 8, world), 8 * round_, 8, 0)  # type: ignore[arg-type]
            found.update((one.prompt, one.generation.ids) for one in made)
        return found

    first = replies(1, 16)
    assert first.total() == 8 * group
    assert len(first) >= 8 * group - 1  # copies of a prompt and choices of one are drawn apart
    assert replies(2, 3) == replies(4, 16) == replies(1, 3) == first
    assert replies(1, 16, round_=1) != first
