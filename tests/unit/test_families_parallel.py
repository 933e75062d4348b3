"""Tensor-parallel plans: the same cuts as the originals' own, and plain words where a model cannot be cut."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from hanmo.errors import ConfigError, UnsupportedError
from hanmo.families.huggingface.tensor_parallel import with_plan
from hanmo.families.weight_map import expand
from hanmo.nn.tensor_parallel import (
    IN_HEADS,
    OUT_HEADS,
    VOCABULARY_ROWS,
    WHOLE_LOGITS,
    check_divides,
    distributed,
    each_pass_alone,
)
from tests.unit.tiny import NAMES, tiny

CUT = {VOCABULARY_ROWS: 0, WHOLE_LOGITS: 0, OUT_HEADS: 0, IN_HEADS: 1}
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "huggingface"])
def test_a_rank_holds_what_a_rank_of_the_original_held(name: str, tmp_path: Path) -> None:
    opened = tiny(name, tmp_path)
    plan, cut = opened.network._tp_plan, 0
    modules = {re.sub(r"\.\d+(?=\.|$)", ".*", key) for key, _ in opened.network.named_modules()}
    parameters = {re.sub(r"\.\d+(?=\.|$)", ".*", key) for key, _ in opened.network.named_parameters()}
    assert plan.keys() <= modules | parameters
    layout = next(layout for layout in opened.family.original_format.LAYOUTS if layout.splits)
    for entry in expand(layout.entries, opened.family.config):
        for ours in entry.ours:
            general = re.sub(r"\.\d+(?=\.|$)", ".*", ours)
            module, _, kind = general.rpartition(".")
            style = plan.get(general) or plan.get(module)
            expected = None if style is None or (kind == "bias" and style == IN_HEADS) else CUT[style]
            assert entry.cut == expected, (entry.theirs, ours)
            cut += entry.cut is not None
    assert cut


def test_heads_must_divide(tmp_path: Path) -> None:
    config = tiny("glm", tmp_path).network.config
    check_divides(config, 2)
    with pytest.raises(UnsupportedError, match="over 3 ranks: num_attention_heads=4 does not divide by 3"):
        check_divides(config, 3)
    grouped = AutoConfig.for_model("qwen3", num_attention_heads=8, num_key_value_heads=2)
    with pytest.raises(UnsupportedError, match="over 4 ranks: num_key_value_heads=2 does not divide by 4"):
        check_divides(grouped, 4)


def test_a_rank_needs_a_process_of_its_own(tmp_path: Path) -> None:
    config = tiny("pangu", tmp_path).network.config
    assert distributed(config, 1, CPU) == {}
    with pytest.raises(ConfigError, match="2 ranks needs 2 processes, and there are 1"):
        distributed(config, 2, CPU)


def test_a_model_that_nobody_knows_how_to_cut_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="does not know how to cut gpt2 models"):
        with_plan(None, AutoConfig.for_model("gpt2"))


def test_a_pass_of_several_does_not_see_the_gradients_before(tmp_path: Path) -> None:
    """Only of what is summed over the ranks after every pass; the sum over the passes is the same as ever."""
    qwen = tiny("huggingface", tmp_path).network
    for parameter in qwen.parameters():
        parameter.grad = torch.ones_like(parameter)
    with each_pass_alone(qwen):
        apart = {name for name, parameter in qwen.named_parameters() if parameter.grad is None}
        for parameter in qwen.parameters():
            parameter.grad = 2.0 + (0.0 if parameter.grad is None else parameter.grad) + torch.zeros_like(parameter)
    layers = qwen.config.num_hidden_layers
    names = [f"model.layers.{at}.self_attn.{one}_norm.weight" for at in range(layers) for one in "qk"]
    assert apart == set(names)
    assert all((parameter.grad == 3.0).all() for parameter in qwen.parameters())
    pangu = tiny("pangu", tmp_path / "pangu").network
    for parameter in pangu.parameters():
        parameter.grad = torch.ones_like(parameter)
    with each_pass_alone(pangu):
        assert all(parameter.grad is not None for parameter in pangu.parameters())
