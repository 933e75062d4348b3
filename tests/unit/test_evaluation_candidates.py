"""Candidates scored from a shared context get the scores they get alone, for every family and every batch."""

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hanmo.errors import HanmoError, UnsupportedError
from hanmo.evaluation.engine import candidates
from hanmo.evaluation.engine.candidates import score_alone, score_candidates
from hanmo.families.base import OpenedModel
from hanmo.families.glm.family import GlmFamily
from hanmo.families.glm.modeling import GlmConfig, GlmModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt
from hanmo.families.pangu.family import PanguFamily
from hanmo.families.pangu.modeling import PanguConfig, PanguModel
from hanmo.families.transformer_xl.family import TransformerXLFamily
from hanmo.families.transformer_xl.modeling import TransformerXLConfig, TransformerXLModel
from hanmo.rows import Part, split_at_difference
from tests.unit.tiny import tiny_eva

LETTERS = 60  # ids from 10 on are text
COMMANDS = {"[MASK]": 50003, "[sMASK]": 50008, "[gMASK]": 50009, "<|startofpiece|>": 50006, "<|endofpiece|>": 50007}
COMMANDS["<|endoftext|>"] = 50000


class Specials(SimpleNamespace):
    """A tokenizer as far as ids are concerned."""

    def __len__(self) -> int:
        return 50048

    def encode(self, text: str, **options: Any) -> list[int]:
        return [10] * len(text)


SPECIALS: Any = Specials(
    convert_tokens_to_ids=COMMANDS.__getitem__,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    sep_token_id=3,
    chat_template=None,
    all_special_ids=[0, 1, 2, 3],
)


def louder(network: Any) -> Any:
    """Weights far from zero, so that predictions differ from place to place."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return network.eval()


def opened(name: str) -> OpenedModel:
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 80, "hidden_size": 32}
    if name == "eva":
        return tiny_eva()
    if name == "pangu":
        config: Any = PanguConfig(**small, num_layers=3, num_heads=4, eos_token_id=2, pad_token_id=0)
        return OpenedModel(louder(PanguModel(config)), PanguFamily(config, SPECIALS), name)
    if name == "glm":
        config = GlmConfig(hidden_size=32, num_layers=2, num_attention_heads=4, max_sequence_length=128)
        return OpenedModel(louder(GlmModel(config)), GlmFamily(config, SPECIALS), name)
    if name == "transformer_xl":
        config = TransformerXLConfig(**small, num_layers=2, num_heads=4, segment_length=8, memory_length=8)
        return OpenedModel(louder(TransformerXLModel(config)), TransformerXLFamily(config, SPECIALS), name)
    network = adopt(PEERS[name]())
    network = network.eval() if name == "mt5" else louder(network)  # mt5 starts loud
    return OpenedModel(network, HuggingfaceFamily(network.config, SPECIALS), name)


PEERS: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=80, n_embd=32, n_layer=2, n_head=4, eos_token_id=2)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(vocab_size=80, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=8, eos_token_id=2)
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=80, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    eos_token_id=2)
    ),
    "mt5": lambda: MT5ForConditionalGeneration(
        MT5Config(vocab_size=80, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, eos_token_id=2, pad_token_id=0,
                  decoder_start_token_id=0)
    ),
}  # fmt: skip
FAMILIES = ("eva", "pangu", "glm", "transformer_xl", *PEERS)


def questions(name: str, rng: Random, count: int, most: int) -> list[Any]:
    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(11, LETTERS) for _ in range(rng.randint(low, high)))

    made = []
    for _ in range(count):
        context = ids(1, 30)
        if name == "glm":
            context = (50002, *context, 50003, 50000)
        opening = ids(0, 2)  # candidates may begin alike, one may be the beginning of another
        made.append([[Part(context, False), Part((*opening, *ids(1, 6)), True)] for _ in range(rng.randint(1, most))])
    return made


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_each_candidate_alone(name: str, stop: bool) -> None:
    model = opened(name)
    asked = questions(name, Random(1), 7, 9)
    if stop:  # scored like any other token
        asked = [[[a, Part((*b.ids, model.family.stop_id), True)] for a, b in question] for question in asked]
    alone = [score_alone(model, question) for question in asked]
    for budget in (1, 50, 300, 100_000):
        together = score_candidates(model, asked, budget)
        for one, other in zip(alone, together, strict=True):
            assert len(one) == len(other)
            for expected, got in zip(one, other, strict=True):
                assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 400))
def test_any_questions_and_budget(seed: int, budget: int) -> None:
    model = opened("pangu")
    asked = questions("pangu", Random(seed), 4, 5)
    for one, other in zip(
        [score_alone(model, question) for question in asked], score_candidates(model, asked, budget=budget), strict=True
    ):
        for expected, got in zip(one, other, strict=True):
            assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_candidates_inside_a_text_with_unlike_contexts_are_scored_too() -> None:
    model = opened("pangu")
    asked = [[[Part((1, 20), False), Part((21,), True), Part((22,), False)], [Part((1, 30), False), Part((21,), True)]]]
    (got,) = score_candidates(model, asked)
    assert [score.logprobs for score in got] == [
        pytest.approx(score.logprobs) for score in score_alone(model, asked[0])
    ]
    assert [score.tokens for score in got] == [1, 1]


def test_the_context_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("pangu")
    read: list[int] = []
    backbone = model.network.backbone

    def counting(input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(input_ids.numel())
        return backbone(input_ids, *args, **kwargs)

    monkeypatch.setattr(model.network, "backbone", counting)
    context = tuple(range(10, 60))
    asked = [[[Part(context, False), Part((option, option + 1, 9), True)] for option in range(10, 30)]]
    score_candidates(model, asked)
    assert sum(read) == len(context) + 20 * 2  # the last token of a candidate is never fed


def test_what_candidates_begin_with_is_fed_once() -> None:
    answers = [(0, (5, 6, 7)), (0, (5, 6, 8)), (0, (5,)), (0, (5, 6)), (0, (9, 6)), (1, (5, 6, 7, 8))]
    branches = candidates._branches(answers)
    assert [(branch.source, branch.ids) for branch in branches] == [(1, (5, 6, 7)), (0, (5, 6)), (0, (9,))]
    assert [[number for number, _ in branch.answers] for branch in branches] == [[5], [0, 1, 3], [4]]


def test_a_cpu_is_not_fed_short_contexts_among_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, score, widths = opened("pangu"), candidates._score, []

    def watching(opened: Any, batch: Any, budget: int) -> Any:
        widths.append([question.width for question in batch])
        return score(opened, batch, budget)

    monkeypatch.setattr(candidates, "_score", watching)
    context = [tuple(range(10, 10 + length)) for length in (20, 9, 19, 10)]
    score_candidates(model, [[[Part(ids, False), Part((11,), True)]] for ids in context])
    assert widths == [[20, 19], [10, 9]]


def test_single_results_as_they_come() -> None:
    model = tiny_eva()
    asked = questions("eva", Random(3), 5, 3)
    seen: list[tuple[int, Any]] = []
    scores = score_candidates(model, asked, budget=40, on_scored=lambda *found: seen.append(found))
    assert len(seen) == 5 and [dict(seen)[index] for index in range(5)] == scores


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_the_budget_is_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model = tiny_eva()
    asked = questions("eva", Random(4), 6, 3)
    expected = score_candidates(model, asked)
    score, budgets = candidates._score, []

    def small(opened: Any, batch: Any, budget: int) -> Any:
        budgets.append(budget)
        if budget > 64:
            raise error
        return score(opened, batch, budget)

    monkeypatch.setattr(candidates, "_score", small)
    got = score_candidates(model, asked, budget=256)
    assert budgets[:3] == [256, 128, 64] and set(budgets[2:]) == {64}
    for one, other in zip(expected, got, strict=True):
        assert [score.nll for score in one] == pytest.approx([score.nll for score in other], abs=1e-4)


def test_out_of_memory_with_one_candidate_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(candidates, "_score", full)
    with pytest.raises(HanmoError, match="out of memory with a single candidate"):
        score_candidates(tiny_eva(), questions("eva", Random(5), 1, 2))


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(candidates, "_score", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        score_candidates(tiny_eva(), questions("eva", Random(5), 1, 2))


def test_ids_part_where_they_first_differ_and_each_keeps_one() -> None:
    assert split_at_difference([[1, 2, 3], [1, 2, 4, 5]]) == [
        [Part((1, 2), False), Part((3,), True)],
        [Part((1, 2), False), Part((4, 5), True)],
    ]
    # one is the beginning of the other: its last id stays scored
    assert split_at_difference([[1, 2], [1, 2, 3]])[1] == [Part((1,), False), Part((2, 3), True)]
    with pytest.raises(UnsupportedError, match="nothing stands before"):
        split_at_difference([[1], [2]])
