"""Trees of candidates: what they hold, that they score as one by one does, and which networks may not read them."""

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from hanmo.evaluation.engine import candidates, trees
from hanmo.evaluation.engine.candidates import score_alone, score_candidates
from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt
from hanmo.nn.batching import batching_of
from hanmo.nn.causal import causal_prompt
from hanmo.rows import Part, Prompt
from tests.unit.test_evaluation_candidates import SPECIALS, louder, opened, questions

READERS = ("pangu", "gpt2", "qwen3", "llama")


def prompt(*ids: int) -> Prompt:
    return causal_prompt(ids, (2,))


def mistral(window: int | None) -> Any:
    config = MistralConfig(vocab_size=80, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, sliding_window=window, eos_token_id=2)  # fmt: skip
    return MistralForCausalLM(config)


REFUSED: dict[str, Any] = {
    "a window": lambda: mistral(8),
    "a window nearly as wide as a tree": lambda: mistral(trees.WIDEST - 50),
    "local layers": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(vocab_size=80, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
                     window_size=16, eos_token_id=2)
    ),
    "positions that count columns": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=80, hidden_size=32, n_layer=2, n_head=4, eos_token_id=2)
    ),
    "recurrence": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=80, hidden_size=32, num_hidden_layers=2, eos_token_id=2)
    ),
}  # fmt: skip


def transformers_model(network: Any) -> OpenedModel:
    network = adopt(louder(network))
    return OpenedModel(network, HuggingfaceFamily(network.config, SPECIALS), type(network).__name__)


def gpt2() -> OpenedModel:
    """A network that has been found to read trees exactly."""
    model = opened("gpt2")
    model.network.trees_are_exact = True
    return model


def test_a_tree_reads_what_branches_share_once() -> None:
    tree = trees.plant(3, prompt(7, 8), [(5, 6, 1), (5, 6, 2, 3), (5, 9), (4,)])
    assert tree.number == 3 and tree.ids == [7, 8, 5, 6, 2]
    assert tree.positions == [0, 1, 2, 3, 4] and tree.parents == [-1, 0, 1, 2, 3]
    assert tree.reads == [[(1, 5), (2, 6), (3, 1)], [(1, 5), (2, 6), (3, 2), (4, 3)], [(1, 5), (2, 9)], [(1, 4)]]
    branching = trees.plant(0, prompt(7), [(5, 6, 1), (8, 6, 1)])
    assert branching.ids == [7, 5, 6, 8, 6]
    assert branching.positions == [0, 1, 2, 1, 2] and branching.parents == [-1, 0, 1, 0, 3]


def test_rows_are_filled_up_with_smaller_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "FILLED", 10)
    planted = [trees.plant(number, prompt(*range(size)), [(1,)]) for number, size in enumerate((4, 12, 7, 3, 5, 1))]
    assert [[tree.size for tree in row] for row in trees.rows_of(planted)] == [[12], [7, 3], [5, 4, 1]]


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_trees_score_as_one_by_one(name: str, stop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "FILLED", 60)
    model = opened(name)
    assert trees.probe(model)
    model.network.trees_are_exact = True
    asked = questions(name, Random(1), 7, 9)
    if stop:  # scored like any other token
        asked = [[[a, Part((*b.ids, model.family.stop_id), True)] for a, b in question] for question in asked]
    alone = [score_alone(model, question) for question in asked]
    monkeypatch.setattr(candidates, "_score", None)  # nothing goes step by step
    together = score_candidates(model, asked)
    for one, other in zip(alone, together, strict=True):
        for expected, got in zip(one, other, strict=True):
            assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 400))
def test_any_questions_and_budget(seed: int, budget: int) -> None:
    """Small budgets leave large trees to the steps, so that both ways share the questions."""
    model, asked = gpt2(), questions("gpt2", Random(seed), 4, 5)
    for one, other in zip(
        [score_alone(model, question) for question in asked], score_candidates(model, asked, budget=budget), strict=True
    ):
        for expected, got in zip(one, other, strict=True):
            assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_would_be_wrong_are_found_out(name: str) -> None:
    torch.manual_seed(0)
    model = transformers_model(REFUSED[name]())
    assert not trees.exact(model, 10**9) and model.network.trees_are_exact is False
    if name == "recurrence":
        return  # such networks have no cache to go on from either
    asked = questions("gpt2", Random(2), 3, 4)
    for question, scores in zip(asked, score_candidates(model, asked), strict=True):
        for expected, got in zip(score_alone(model, question), scores, strict=True):
            assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_the_same_network_without_its_window_passes() -> None:
    torch.manual_seed(0)
    assert trees.probe(transformers_model(mistral(None)))


@pytest.mark.parametrize("name", ["eva", "glm", "transformer_xl", "mt5"])
def test_other_networks_are_not_asked_for_trees(name: str) -> None:
    assert not trees.exact(opened(name), 10**9)


def test_fewer_bits_than_a_probe_needs() -> None:
    model = opened("gpt2")
    model.network.to(torch.bfloat16)
    assert not trees.probe(model)


def test_the_probe_waits_for_work_that_pays_and_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = opened("gpt2"), []

    def counted(opened: Any) -> bool:
        asked.append(opened)
        return True

    monkeypatch.setattr(trees, "probe", counted)
    assert not trees.exact(model, trees.WORTH * trees.WIDEST - 1) and not asked
    assert trees.exact(model, trees.WORTH * trees.WIDEST) and trees.exact(model, 1)
    assert asked == [model]


def test_no_token_is_read_twice_and_none_is_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counting(module: Any, args: Any, inputs: Any) -> None:
        read.append(inputs["input_ids"].numel())

    model = gpt2()
    batching_of(model.network)  # asked once, by texts of its own
    monkeypatch.setattr(GPT2LMHeadModel, "forward", None)  # logits of all places are never made
    handle = model.network.base_model.register_forward_pre_hook(counting, with_kwargs=True)
    context = tuple(range(10, 60))
    candidates_of = [[Part(context, False), Part((9, option, option + 1), True)] for option in range(10, 30)]
    score_candidates(model, [candidates_of, [[Part((5, 6), False), Part((7,), True)]]])
    handle.remove()
    assert read == [len(context) + 1 + 20 + 2]


def test_a_row_that_memory_has_no_room_for_goes_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = gpt2(), questions("gpt2", Random(4), 6, 3)
    expected = score_candidates(model, asked)

    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(trees, "read", full)
    for one, other in zip(expected, score_candidates(model, asked), strict=True):
        assert [score.nll for score in one] == pytest.approx([score.nll for score in other], abs=1e-4)


def test_a_probe_that_memory_has_no_room_for_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its questions are scored one after the other, and the network is asked again."""
    model, asked = opened("gpt2"), questions("gpt2", Random(4), 6, 3)
    model.network.trees_are_exact = None
    expected = score_candidates(model, asked)
    tried: list[int] = []

    def full(*arguments: Any) -> Any:
        tried.append(1)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(trees, "WORTH", 0)
    monkeypatch.setattr(trees, "read", full)
    for one, other in zip(expected, score_candidates(model, asked), strict=True):
        assert [score.nll for score in one] == pytest.approx([score.nll for score in other], abs=1e-4)
    assert tried and model.network.trees_are_exact is None
