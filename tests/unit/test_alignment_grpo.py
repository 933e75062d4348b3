"""GRPO's kin: every option takes the steps that plain transformers and torch take; groups that teach nothing are drawn again."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hanmo.checkpoints import open_model
from hanmo.errors import DivergedError
from hanmo.generation.decode import Generation
from hanmo.generation.settings import Settings
from hanmo.training.callbacks import read_metrics
from hanmo.training.rl import rollout
from hanmo.training.rl.policy import Judged
from hanmo.training.stages.grpo import GrpoConfig, GrpoTrainer, grpo
from tests.unit.alignment_cases import starts, trainer
from tests.unit.test_training_policy import small

SCORES = (1.0, 0.0, 3.0, 0.5, -1.0, 0.0, 0.0, 2.0)
LENGTHS = (1, 4, 2, 3, 5, 1, 2, 2)
ENDED = (True, False, True, True, False, True, True, False)
RATE, LONGEST, GROUP = 0.5, 7, 4


def by_place(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    return list(SCORES[: len(replies)])


class Says:
    """An engine that says the same at each place; ``asked`` are the contexts."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, contexts: Any, settings: Any, places: Any) -> list[Generation]:
        self.asked = [tuple(context.ids) for context in contexts]
        ids = [
            tuple(5 + (place + 3 * number) % 20 for number in range(LENGTHS[place])) for place in range(len(LENGTHS))
        ]
        return [Generation(one, (), 0.0, ended) for one, ended in zip(ids, ENDED, strict=True)]


def ratios(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    return [(one - other).exp() for one, other in zip(new, old, strict=True)]


def clipped(ratio: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def advantages(scale: bool = True, others: bool = False) -> Tensor:
    groups = []
    for group in torch.tensor(SCORES).split(GROUP):
        mean = (
            torch.stack([group[torch.arange(GROUP) != place].mean() for place in range(GROUP)])
            if others
            else group.mean()
        )
        groups.append((group - mean) / (group.std() + 1e-4 if scale else 1))
    return torch.cat(groups)


def by_token(new: list[Tensor], old: list[Tensor], low: float = 0.2, high: float = 0.2, **kind: bool) -> Tensor:
    each = [clipped(r, a, low, high) for r, a in zip(ratios(new, old), advantages(**kind), strict=True)]
    return torch.cat(each).mean()


def of_replies(new: list[Tensor], old: list[Tensor]) -> Tensor:
    """Each reply has one ratio, the geometric mean of those of its tokens."""
    each = [r.log().mean().exp() for r in ratios(new, old)]
    return torch.stack([clipped(r, a, 0.05, 0.05) for r, a in zip(each, advantages(), strict=True)]).mean()


def constant(new: list[Tensor], old: list[Tensor]) -> Tensor:
    each = [clipped(r, a).sum() / LONGEST for r, a in zip(ratios(new, old), advantages(scale=False), strict=True)]
    return torch.stack(each).mean()


def whole(new: list[Tensor], old: list[Tensor]) -> Tensor:
    each = [clipped(r, a).mean() for r, a in zip(ratios(new, old), advantages(), strict=True)]
    return torch.stack(each).mean()


def finished_alone(new: list[Tensor], old: list[Tensor]) -> Tensor:
    every = zip(ratios(new, old), advantages(), ENDED, strict=True)
    return torch.cat([clipped(r, a) for r, a, ended in every if ended]).mean()


def finished_of_all(new: list[Tensor], old: list[Tensor]) -> Tensor:
    every = zip(ratios(new, old), advantages(), ENDED, strict=True)
    return torch.stack([clipped(r, a).mean() * ended for r, a, ended in every]).mean()


# settings -> the loss of a step, by hand
CASES: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "default": ({}, by_token),
    "clip": ({"clip": 0.05}, partial(by_token, low=0.05, high=0.05)),
    "clip_high": ({"clip": 0.05, "clip_high": 0.6}, partial(by_token, low=0.05, high=0.6)),
    "scale": ({"scale": False}, partial(by_token, scale=False)),
    "baseline": ({"baseline": "leave_one_out", "scale": False}, partial(by_token, scale=False, others=True)),
    "baseline, scaled": ({"baseline": "leave_one_out"}, partial(by_token, others=True)),
    "ratio": ({"ratio": "reply", "loss": "reply", "clip": 0.05}, of_replies),
    "reply": ({"loss": "reply"}, whole),
    "constant": ({"loss": "constant", "scale": False}, constant),
    "mask_truncated": ({"mask_truncated": True}, finished_alone),
    "mask_truncated, reply": ({"mask_truncated": True, "loss": "reply"}, finished_of_all),
}


def taken(start: Path, asked: list[tuple[int, ...]], said: list[Generation], loss: Callable[..., Tensor]) -> Any:
    """Plain transformers after two steps of SGD on the same replies."""
    model = AutoModelForCausalLM.from_pretrained(start)
    stop = open_model(start, device="cpu").family.stop_id

    def logprobs() -> list[Tensor]:
        found = []
        for context, reply in zip(asked, said, strict=True):
            target = torch.tensor([*reply.ids, *[stop] * reply.finished])
            ids = torch.tensor([[*context, *target.tolist()]])
            logits = model(input_ids=ids).logits[0, len(context) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, target[:, None])[:, 0])
        return found

    old = [one.detach() for one in logprobs()]
    for _ in range(2):
        model.zero_grad()
        loss(logprobs(), old).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
    return model


def trained(folder: Path, engine: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    monkeypatch.setattr(rollout, "rollout_settings", lambda *given: Settings(max_new_tokens=LONGEST))
    given = trainer(per_device_train_batch_size=8, learning_rate=RATE, optim="sgd", max_grad_norm=0.0, bf16=False)
    common = {"rounds": 1, "samples": 8, "group": GROUP, "epochs": 2, "beta": 0.0, "trainer": given}
    config = small(GrpoConfig, folder, rewards=(f"{__name__}:by_place",), **{**common, **settings})
    outcome = grpo(config, engine=engine)
    return dict(open_model(outcome.model, dtype="fp32", device="cpu").network.named_parameters())


@pytest.mark.parametrize("case", CASES)
def test_an_option_takes_the_steps_computed_by_hand(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step is taken at ratio 1, the second where ratios are clipped; both differ from those without the option."""
    settings, loss = CASES[case]
    start, engine = starts(tmp_path, "huggingface"), Says()
    found = trained(tmp_path, engine, monkeypatch, **settings)
    said = engine([SimpleNamespace(ids=ids) for ids in engine.asked], None, None)
    expected = dict(taken(start, engine.asked, said, loss).named_parameters())
    plain = dict(taken(start, engine.asked, said, by_token).named_parameters())
    differs = 0.0
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
        differs = max(differs, (plain[name] - tensor).abs().max().item())
    assert case == "default" or differs > 1e-3


def test_without_a_penalty_no_reference_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a copy nor tensors to swap in, and no distance to it is told."""
    made: list[str] = []
    kept = rollout.Reference.__init__

    def watched(self: Any, network: Any, kind: Any) -> None:
        made.append(kind)
        kept(self, network, kind)

    monkeypatch.setattr(rollout.Reference, "__init__", watched)
    starts(tmp_path, "pangu")
    for kind in ("swap", "copy"):
        run = tmp_path / kind
        outcome = grpo(small(GrpoConfig, tmp_path, out=str(run), beta=0.0, reference=kind, rounds=1))
        assert not made and outcome.kl is None
        assert not any(name.startswith("kl_") for entry in read_metrics(run / "metrics.jsonl") for name in entry)
        grpo(small(GrpoConfig, tmp_path, out=str(tmp_path / f"{kind} kept"), reference=kind, rounds=1))
        assert made.pop() == kind


# Groups that teach nothing


def judge(scores: list[float], prompts: Sequence[str] = ()) -> list[Judged]:
    names = prompts or [""] * len(scores)
    return [
        Judged(SimpleNamespace(prompt=name), (score,), score, score) for name, score in zip(names, scores, strict=True)
    ]  # type: ignore[arg-type]


class Draws:
    """A trainer of one process (of several) that draws groups from a table: attempt -> scores of each prompt asked."""

    def __init__(self, table: list[list[list[float]]], resample: int, others: Sequence[int] = ()):
        self.config, self.group, self.round = SimpleNamespace(samples=8, resample=resample), 2, 5
        self.redrawn, self.undecided_rounds, self.table, self.others = 3, 0, table, others
        self.asked: list[tuple[list[int], int, int, int]] = []

    def judged(self, numbers: Sequence[int], start: int, wanted: int, seen: int) -> list[Judged]:
        scores = self.table[len(self.asked)]
        self.asked.append((list(numbers), start, wanted, seen))
        return [one for number in numbers for one in judge(scores[number])]

    _check_decided = GrpoTrainer._check_decided


def decided(one: Draws, numbers: list[int], scores: list[float]) -> list[float]:
    return [judged.score for judged in GrpoTrainer.decided(one, numbers, judge(scores))]  # type: ignore[arg-type]


FIRST = [1.0, 0.0, 2.0, 2.0, 0.0, 0.0, 1.0, 2.0]  # groups 1 and 2 are alike


def test_groups_that_score_alike_are_drawn_again_with_the_next_prompts() -> None:
    """Four prompts a round, the sixth round, three prompts drawn again before: the next ones begin at 6 x 4 + 3."""
    one = Draws([[[5.0, 5.0], [1.0, 2.0]], [[7.0, 8.0]]], resample=5)
    assert decided(one, [0, 1, 2, 3], FIRST) == [1, 0, 7, 8, 1, 2, 1, 2]
    assert one.asked == [([0, 1], 27, 2, 4), ([0], 29, 1, 6)]
    assert one.redrawn == 6 and one.undecided_rounds == 0


def test_drawing_again_has_a_bound() -> None:
    one = Draws([[[5.0, 5.0], [6.0, 6.0]]], resample=1)
    assert decided(one, [0, 1, 2, 3], FIRST) == [1, 0, 5, 5, 6, 6, 1, 2]
    assert len(one.asked) == 1
    assert decided(Draws([], resample=0), [0, 1, 2, 3], FIRST) == FIRST


def test_processes_draw_again_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the undecided groups 1 and 2 the second process has group 1, and takes the first of the next two prompts."""
    table = [[[5.0, 5.0], [1.0, 2.0]], [[7.0, 8.0]]]
    for numbers, scores, gathered, expected, asked in (
        ([0, 2], [1.0, 0.0, 0.0, 0.0], [[1], [1]], [1, 0, 1, 2], [[1], []]),
        ([1, 3], [2.0, 2.0, 1.0, 2.0], [[2], []], [7, 8, 1, 2], [[0], [0]]),
    ):
        others = iter([*gathered, []])
        monkeypatch.setattr(
            "hanmo.training.stages.grpo.gather_object", lambda own, others=others: [*own, *next(others)]
        )
        one = Draws(table, resample=5)
        assert decided(one, numbers, scores) == expected
        assert [one[0] for one in one.asked] == asked and one.redrawn == 6


def test_three_rounds_with_nothing_to_learn_stop_the_run() -> None:
    """More than 90 % of the groups; a round with more to learn begins the count anew."""
    one = Draws([], resample=2)
    for undecided in (10, 10, 9, 10, 10):
        GrpoTrainer._check_decided(one, undecided, 10)  # type: ignore[arg-type]
    with pytest.raises(
        DivergedError, match=r"round 6: in 10 of 10 groups all replies score alike after resample=2 .* prompts"
    ):
        GrpoTrainer._check_decided(one, 10, 10)  # type: ignore[arg-type]


def pays_alike(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    return [1.0] * len(replies)


def test_a_run_with_nothing_to_learn_says_what_to_do(tmp_path: Path) -> None:
    starts(tmp_path, "pangu")
    config = small(GrpoConfig, tmp_path, rewards=(f"{__name__}:pays_alike",), resample=1, rounds=5, group=2)
    with pytest.raises(DivergedError, match=r"round 3: in 8 of 8 groups .* samples\.jsonl"):
        grpo(config)


def characters(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Whole numbers, so that some groups score alike and some do not."""
    return [float(len(set(reply)) > 3) for reply in replies]


def test_a_killed_run_that_draws_again_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    starts(tmp_path, "pangu")
    common: dict[str, Any] = {"rewards": (f"{__name__}:characters",), "rounds": 3, "save_rounds": 1, "group": 2}
    common |= {"resample": 2, "clip_high": 0.3, "beta": 0.0}
    common["trainer"] = trainer(per_device_train_batch_size=8, learning_rate=1e-4)
    grpo(small(GrpoConfig, tmp_path, out=str(tmp_path / "whole"), **common))
    first = min(
        (tmp_path / "whole" / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    first.rename(tmp_path / "again" / "checkpoints" / first.name)
    grpo(small(GrpoConfig, tmp_path, out=str(tmp_path / "again"), **common), resume=True)
    one, other = (open_model(tmp_path / run / "model", device="cpu").network for run in ("whole", "again"))
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    told = [
        [entry for entry in read_metrics(tmp_path / run / "metrics.jsonl") if "redrawn" in entry]
        for run in ("whole", "again")
    ]
    assert len(told[0]) == 3 and told[0][0]["redrawn"] > 0 and all(entry["grad_norm"] > 0 for entry in told[0])
    kept = ("loss", "grad_norm", "reward", "undecided", "redrawn")
    assert [[entry[name] for name in kept] for entry in told[0][1:]] == [
        [entry[name] for name in kept] for entry in told[1]
    ]
