"""Linear layers in eight bits: how exact, how small, what is refused."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hanmo.checkpoints import open_model, save_model
from hanmo.errors import ConfigError, UnsupportedError
from hanmo.evaluation.results.provenance import weights_hash
from hanmo.nn.cpu.int8 import Int8Linear, count_parameters, is_int8, to_int8

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("eva", "transformer_xl", "pangu", "glm", "huggingface")


@torch.no_grad()
def test_a_layer_rounds_weights_and_inputs_and_no_more() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    linear.weight[3] *= 100  # a row of its own scale does not coarsen the others
    x_ND = torch.randn(5, 64)
    expected, found = linear(x_ND), Int8Linear(linear)(x_ND)
    error_O = (found - expected).abs().amax(0) / linear.weight.abs().amax(1)
    # Half a step of the weights (1/127 of a row's largest) and of the inputs (a step of 1/127 of their range).
    step = (x_ND.max() - x_ND.min()) / 127
    bound = x_ND.abs().sum(1).max() / 254 + 64 * step / 2 + 64 * step / 508
    assert error_O.max() < bound
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * float(expected.std()))
    assert not torch.equal(found, expected)


@torch.no_grad()
def test_weights_that_have_eight_bits_are_exact() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.copy_(torch.tensor([[127.0, -3.0], [0.5, 0.25]]))
    linear.bias.copy_(torch.tensor([1.0, 0.0]))
    linear.weight[1] *= 127 / 64  # 0.9921875 = 127 x 2^-7, 63.5 steps of it
    state = Int8Linear(linear).state_dict()
    assert state["weight"].tolist()[0] == [127, -3] and state["weight"].tolist()[1][0] == 127
    assert state["scale"].tolist() == [1.0, 0.0078125]
    assert state["bias"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_opens_in_int8(name: str) -> None:
    whole, small = open_model(GOLDEN / name, dtype="fp32"), open_model(GOLDEN / name, dtype="int8")
    assert is_int8(small.network) and not is_int8(whole.network)
    assert count_parameters(small.network) == count_parameters(whole.network) == whole.network.num_parameters()
    assert weights_hash(small.network) != weights_hash(whole.network)
    ids = torch.arange(5, 13)[None]
    inputs = {"input_ids": ids}
    if small.network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        expected, found = whole.network(**inputs).logits, small.network(**inputs).logits
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()


def test_what_is_rounded_is_not_saved(tmp_path: Path) -> None:
    opened = open_model(GOLDEN / "pangu", dtype="int8")
    with pytest.raises(UnsupportedError, match="inference only"):
        save_model(opened, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_network_of_other_layers_is_refused_and_left_alone() -> None:
    network = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64))
    before = copy.deepcopy(network)
    with pytest.raises(UnsupportedError, match="use bf16"):
        to_int8(network)
    assert not is_int8(network) and weights_hash(network) == weights_hash(before)


def test_elsewhere_than_in_one_process_on_a_cpu_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="one process on a CPU"):
        open_model(GOLDEN / "pangu", dtype="int8", device="cuda")
    with pytest.raises(UnsupportedError, match="one process on a CPU"):
        open_model(GOLDEN / "pangu", dtype="int8", tensor_parallel=2)
    with pytest.raises(ConfigError, match="did you mean int8"):
        open_model(GOLDEN / "pangu", dtype="int9")
