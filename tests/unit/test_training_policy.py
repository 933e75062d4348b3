"""Rollouts, the reference and rounds: what each promises, on small models of every family."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch

from hanmo.checkpoints import open_model, save_model
from hanmo.config import load
from hanmo.errors import CheckpointError, ConfigError
from hanmo.generation.decode import Generation
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.nn.row_model import attach_value_head, score_tokens
from hanmo.records import Dialogue, PromptResponse, ScoredAnswers
from hanmo.rows import IGNORE, Context, Part, collate
from hanmo.training.callbacks import read_metrics
from hanmo.training.rl.policy import Rounds
from hanmo.training.rl.rewards import load_reward, read_specs, score_rows
from hanmo.training.rl.rollout import (
    OwnEngine,
    Reference,
    Sample,
    prompt_order,
    question,
    rollout_settings,
    scored,
)
from hanmo.training.stages.grpo import GrpoConfig, grpo
from hanmo.training.stages.ppo import PpoConfig, ppo
from hanmo.training.trainable import switch_dropout_off
from tests.unit.alignment_cases import REWARD, said, starts, trainer
from tests.unit.tiny import NAMES, tiny
from tests.unit.transformers_models import write_model


def small(config: Any, folder: Path, **settings: Any) -> Any:
    given = {
        "model": str(folder / "start"),
        "data": str(folder / "prompts.jsonl"),
        "out": str(folder / "run"),
        "rewards": (REWARD,),
        "rounds": 2,
        "samples": 16,
        "limit": 32,
        "generation": {"max_new_tokens": 4},
        "trainer": trainer(per_device_train_batch_size=8, learning_rate=1e-3),
    }
    return config(**{**given, **settings})


def test_prompts_come_round() -> None:
    first, second = prompt_order(5, 5, 0, 7), prompt_order(5, 5, 5, 7)
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert prompt_order(5, 7, 3, 7) == [*first[3:], *second]


@pytest.mark.parametrize("name", NAMES)
def test_rollouts_carry_the_policys_own_logprobs(name: str, tmp_path: Path) -> None:
    """What generation says about its tokens is what the rows of the same ids give, stop token included."""
    opened = tiny(name, tmp_path)
    asked = [question(PromptResponse(text, ""), opened, 32) for text in ("你好吗", "明天去哪里玩", "谢谢")]
    settings = rollout_settings(
        SimpleNamespace(generation={"max_new_tokens": 12, "suppressed_ids": (9,)}), opened, asked
    )
    assert {9, *opened.family.suppressed_ids} <= set(settings.suppressed_ids)
    settings = replace(settings, seed=3, top_p=0.9)
    replies = OwnEngine(opened, 2)([one.context for one in asked], settings, [Place(number) for number in range(3)])
    samples = [Sample(**vars(one), generation=reply, reply="") for one, reply in zip(asked, replies, strict=True)]
    rows = [opened.family.row(sample.parts, stop=sample.generation.finished) for sample in samples]
    batch = collate(rows, opened.family.padding)
    with torch.no_grad():
        free = scored(opened.network(**batch).logprob, batch["labels"])
        barred = torch.tensor(settings.suppressed_ids)
        logprobs = scored(opened.network(**batch, suppressed_ids=barred).logprob, batch["labels"])
    assert all((ours > other).all() for ours, other in zip(logprobs, free, strict=True))  # a choice among fewer ids
    for sample, found in zip(samples, logprobs, strict=True):
        torch.testing.assert_close(found, torch.tensor(sample.generation.logprobs), rtol=1e-3, atol=1e-4)


def test_barred_ids_have_neither_probability_nor_gradient() -> None:
    head, hidden, labels = torch.nn.Linear(4, 6, bias=False), torch.randn(1, 3, 4), torch.tensor([[1, IGNORE, 4]])
    logprob, entropy = score_tokens(head, hidden, labels, entropy=True, suppressed_ids=torch.tensor([0, 5]))
    among = head(hidden)[..., 1:5].log_softmax(-1)  # the ids 1 to 4
    torch.testing.assert_close(logprob, torch.stack([among[:, 0, 0], torch.zeros(1), among[:, 2, 3]], dim=1))
    assert entropy is not None and entropy[0, 0].item() == pytest.approx(-(among.exp() * among).sum(-1)[0, 0].item())
    logprob.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum(1).ne(0).tolist() == [False, True, True, True, True, False]


class Forgetful:
    """An engine that does not keep to what is banned."""

    def __call__(self, contexts: Sequence[Context], settings: Settings, places: Sequence[Place]) -> list[Generation]:
        return [Generation((settings.suppressed_ids[0],), (), 0.0, True) for _ in contexts]


def test_a_banned_id_in_a_reply_is_an_error(tmp_path: Path) -> None:
    starts(tmp_path, "pangu")
    with pytest.raises(ConfigError, match=r"generated the ids \[9\]"):
        grpo(small(GrpoConfig, tmp_path, generation={"max_new_tokens": 4, "suppressed_ids": (9,)}), engine=Forgetful())


@pytest.mark.parametrize("name", NAMES)
def test_dropout_off_is_off(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    (parts,) = opened.family.parts(PromptResponse("你好吗", "我很好"), 32)
    batch = collate([opened.family.row(parts)], opened.family.padding)
    network = opened.network
    switch_dropout_off(network)
    # With gradients: without them, and outside of training, our linear layers take a way that rounds otherwise.
    still = network(**batch).logprob
    moving = network.train()(**batch).logprob
    network.eval()
    assert torch.equal(still, moving)


@pytest.mark.parametrize("kind", ["swap", "copy"])
def test_the_reference_stays_where_the_policy_was(kind: Any, tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path)
    network = opened.network
    network.layers[0].requires_grad_(False)
    (parts,) = opened.family.parts(PromptResponse("你好吗", "我很好"), 32)
    batch = collate([opened.family.row(parts)], opened.family.padding)
    with torch.no_grad():
        before = network(**batch).logprob
        reference = Reference(network, kind)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        after = network(**batch).logprob
        for _ in range(2):
            with reference.active() as network_then:
                assert torch.equal(network_then(**batch).logprob, before)
            assert torch.equal(network(**batch).logprob, after)
    assert not torch.allclose(before, after)
    if kind == "swap":
        assert not any(name.startswith("layers.0.") for name in reference._kept)


def test_questions() -> None:
    class Opened:
        class family:  # noqa: N801
            @staticmethod
            def context(record: Any, limit: int) -> Context:
                return Context((1,), (1,))

    opened: Any = Opened
    assert question(Dialogue(("甲", "乙", "丙", "丁")), opened, 8).record == Dialogue(("甲", "乙", "丙"))
    assert question(Dialogue(("甲",)), opened, 8).record == Dialogue(("甲",))
    answers = ScoredAnswers("问", (("好", 1.0), ("坏", 0.0)), "答：")
    assert question(answers, opened, 8).record == PromptResponse("问", "", "答：")


def test_rewards_that_are_none(tmp_path: Path) -> None:
    opened = tiny("eva", tmp_path)
    with pytest.raises(ConfigError, match=r"no function 'nothing' in .*; expected module:function"):
        load_reward(*read_specs(["tests.unit.alignment_cases:nothing"]), opened, 32, None, 8)
    folder = starts(tmp_path / "plain", "eva")
    words = load_reward(*read_specs(["tests.unit.alignment_cases:in_words"]), opened, 32, None, 8)
    with pytest.raises(
        ConfigError, match=r"gives 'good'; expected a finite number .*the reply '很好' to the record prompts.jsonl:1$"
    ):
        words([said("你好", "很好")])
    with pytest.raises(ConfigError, match="has no value head"):
        load_reward(*read_specs([str(folder)]), opened, 32, None, 8)
    with pytest.raises(ConfigError, match="multiple of the 16 replies"):
        grpo(small(GrpoConfig, tmp_path / "plain", samples=24, trainer=trainer(per_device_train_batch_size=16)))
    with pytest.raises(ConfigError, match="reads no validation file"):
        small(GrpoConfig, tmp_path / "plain", valid="valid.jsonl")
    with pytest.raises(ConfigError, match=r"max_steps.* rounds=N"):
        load(GrpoConfig, None, None, ["model=a", "data=b", "rewards=[c:d]", "trainer.max_steps=3"])


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_does_not_hang_on_the_batch(name: str, tmp_path: Path) -> None:
    import copy

    opened = tiny(name, tmp_path)
    opened = replace(opened, network=copy.deepcopy(opened.network))
    attach_value_head(opened.network, "linear")
    texts = [("你好吗", "我很好"), ("明天去哪里玩", "我们去吃火锅。"), ("谢谢", "再见")]
    rows = [opened.family.parts(PromptResponse(*text), 48)[0] for text in texts]
    finished = [True, False, True]
    together = score_rows(opened, rows, finished, 3)
    alone = [score_rows(opened, [row], [end], 1)[0] for row, end in zip(rows, finished, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 3


def test_a_reply_has_64_tokens_unless_told_otherwise(tmp_path: Path) -> None:
    opened = tiny("pangu", tmp_path)
    asked = [question(PromptResponse("你好吗", ""), opened, 32)]
    assert rollout_settings(SimpleNamespace(generation={}), opened, asked).max_new_tokens == 64


def test_a_reward_model_of_another_family_reads_the_texts_in_its_own_way(tmp_path: Path) -> None:
    """An empty reply is judged by the end of its prompt, as the reward model sees it."""
    judge = tiny("glm", tmp_path / "vocabulary")
    attach_value_head(judge.network, "linear")
    save_model(judge, tmp_path / "judge")
    policy = tiny("pangu", tmp_path / "policy")
    score = load_reward(*read_specs([str(tmp_path / "judge")]), policy, 24, None, 2)
    asked, generation = PromptResponse("你好吗", ""), Generation((5, 6), (0.0, 0.0), 0.0, True)
    samples = [
        Sample(asked, Context((1,), (1,)), asked.prompt, generation=generation, reply=reply) for reply in ("很好", "")
    ]
    said = judge.family.parts(PromptResponse("你好吗", "很好"), 24)[0]
    silent = [Part(judge.family.context(asked, 24).ids, False), Part((), True)]
    expected = [score_rows(judge, [parts], [True], 1)[0] for parts in (said, silent)]
    assert score(samples) == pytest.approx(expected, abs=1e-5) and expected[0] != expected[1]


def test_a_step_pads_little_and_leaves_no_reply_out() -> None:
    """The replies of a step are drawn; among its batches they lie by length."""
    batch = [SimpleNamespace(row=SimpleNamespace(size=size)) for size in (9, 3, 7, 1, 8, 2, 6, 4)]
    args = SimpleNamespace(per_device_train_batch_size=2, gradient_accumulation_steps=2, seed=1)
    asked: Any = SimpleNamespace(
        args=args, config=SimpleNamespace(epochs=2), round=0, collect=lambda: batch, moved_too_far=lambda: False,
        minibatch=lambda rows: [one.row.size for one in rows],
    )  # fmt: skip
    given = [one for one, _ in zip(Rounds(asked), range(8), strict=False)]
    steps = [[*one, *other] for one, other in zip(given[::2], given[1::2], strict=True)]
    assert all(step == sorted(step) for step in steps)
    first, second = [*steps[0], *steps[1]], [*steps[2], *steps[3]]
    assert sorted(first) == sorted(second) == sorted(one.row.size for one in batch)
    assert first != second


class Server(BaseHTTPRequestHandler):
    """A stand-in for an inference server: ids in, ids out."""

    engine: Any = None

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        contexts = [Context(tuple(ids), tuple(ids)) for ids in asked["contexts"]]
        replies = type(self).engine(
            contexts, Settings(**asked["settings"]), [Place(*place) for place in asked["places"]]
        )
        body = json.dumps([{"ids": one.ids, "finished": one.finished} for one in replies]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class HttpEngine:
    """An engine that knows ids alone: log-probabilities are computed here."""

    def __init__(self, address: str):
        self.address, self.calls = address, 0

    def __call__(self, contexts: Sequence[Context], settings: Settings, places: Sequence[Place]) -> list[Generation]:
        self.calls += 1
        chosen = {
            "max_new_tokens": settings.max_new_tokens,
            "seed": settings.seed,
            "suppressed_ids": settings.suppressed_ids,
        }
        told = {"contexts": [one.ids for one in contexts], "settings": chosen, "places": places}
        asked = json.dumps(told).encode()
        with urlopen(Request(self.address, asked), timeout=60) as answer:
            return [Generation(tuple(one["ids"]), (), 0.0, one["finished"]) for one in json.load(answer)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    Server.engine = OwnEngine(open_model(starts(tmp_path, "pangu"), device="cpu"), 16)
    running = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/"
    running.shutdown()


@pytest.mark.slow
def test_an_inference_server_can_make_the_replies(server: str, tmp_path: Path) -> None:
    engine = HttpEngine(server)
    outcome = grpo(small(GrpoConfig, tmp_path, rounds=1), engine=engine)
    assert (engine.calls, outcome.steps) == (1, 2)
    by_http = next(entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "reward" in entry)
    grpo(small(GrpoConfig, tmp_path, rounds=1, out=str(tmp_path / "own")))
    own = next(entry for entry in read_metrics(tmp_path / "own" / "metrics.jsonl") if "reward" in entry)
    for name in ("reward", "entropy", "kl_k1", "length"):
        assert by_http[name] == pytest.approx(own[name], abs=1e-4)


@pytest.mark.parametrize(
    ("config", "train"), [(PpoConfig, ppo), pytest.param(GrpoConfig, grpo, marks=pytest.mark.slow)]
)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(config: Any, train: Any, tmp_path: Path) -> None:
    """Policy, critic, optimizer, KL controller, reward scale and prompts go on where the checkpoint stood."""
    starts(tmp_path, "pangu")
    further = {"kl_target": 1.0, "scale_reward": "running"} if config is PpoConfig else {}
    whole = small(config, tmp_path, rounds=3, save_rounds=1, out=str(tmp_path / "whole"), **further)
    train(whole)
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "whole" / "checkpoints" / "checkpoint-2").rename(again / "kept")
    (again / "checkpoints").mkdir()
    (again / "kept").rename(again / "checkpoints" / "checkpoint-2")
    state = again / "checkpoints" / "checkpoint-2" / "rounds.json"
    kept = state.read_text()
    state.write_text(json.dumps({**json.loads(kept), "moments": {"mean": "x"}}))
    with pytest.raises(CheckpointError, match=r"rounds\.json: cannot be resumed from: .*moments"):
        train(small(config, tmp_path, rounds=3, save_rounds=1, out=str(again), **further), resume=True)
    state.write_text(kept)
    train(small(config, tmp_path, rounds=3, save_rounds=1, out=str(again), **further), resume=True)
    one, other = (open_model(tmp_path / run / "model", device="cpu").network for run in ("whole", "again"))
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("lora", [{}, {"rank": 2}])
def test_mixed_precision_neither_misleads_the_probe_nor_the_first_kl(lora: dict[str, int], tmp_path: Path) -> None:
    """The trainer wraps the network in autocast, in which no logits are as near to each other as those of fp32."""
    write_model("mt5", tmp_path / "start")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "你好吗"}\n{"prompt": "明天去哪里玩"}\n', encoding="utf-8")
    settings = trainer(per_device_train_batch_size=8, bf16=True)
    grpo(small(GrpoConfig, tmp_path, rounds=1, samples=8, group=4, beta=0.1, lora=lora, trainer=settings))
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert abs(first["kl_k3"]) < 1e-6  # the policy still is the model that it started from
