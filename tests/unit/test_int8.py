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
from hanmo.generation.decode import generate
from hanmo.generation.draws import Place
from hanmo.generation.settings import Settings
from hanmo.nn.cpu.int8 import Int8Linear, Splitter, count_parameters, is_int8, to_int8
from hanmo.records import Dialogue

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("eva", "transformer_xl", "pangu", "glm", "huggingface")


def rounded(linear: nn.Linear) -> torch.Tensor:
    """The product of inputs with its weights in 127 steps of each output's largest, in float64."""
    weight_OI = linear.weight.double()
    scale_O1 = weight_OI.abs().amax(1, keepdim=True) / 127
    return (weight_OI / scale_O1).round() * scale_O1


@torch.no_grad()
@pytest.mark.parametrize("largest", [1.0, 300.0], ids=["even", "one large activation"])
def test_a_layer_rounds_its_weights_and_hardly_its_inputs(largest: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    linear.weight[3] *= 100  # a row of its own scale does not coarsen the others
    x_ND = torch.randn(5, 64)
    x_ND[1, 7] = largest
    expected = x_ND.double() @ rounded(linear).t() + linear.bias.double()
    # Each input is off by half of 1 / (63 x 126) of the largest of its row.
    bound_NO = x_ND.abs().amax(1, keepdim=True) * rounded(linear).abs().sum(1) / (2 * 63 * 126) + 1e-5
    found = Int8Linear(linear, Splitter())(x_ND)
    assert ((found - expected).abs() <= bound_NO).all()
    assert not torch.equal(found, linear(x_ND))


@torch.no_grad()
def test_a_row_is_what_it_is_alone() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 32), Splitter())
    x_ND = torch.randn(9, 64) * torch.logspace(-3, 3, 9)[:, None]
    assert torch.equal(layer(x_ND), torch.cat([layer(row[None]) for row in x_ND]))
    assert torch.equal(layer(x_ND), layer(x_ND.view(3, 3, 64)).view(9, 32))


@torch.no_grad()
def test_an_input_that_was_changed_is_split_anew() -> None:
    splitter, x_ND = Splitter(), torch.randn(2, 8)
    one, other = (Int8Linear(nn.Linear(8, 4), splitter) for _ in range(2))
    before = one(x_ND), other(x_ND)
    assert splitter.split(x_ND)[0] is splitter.split(x_ND)[0]
    x_ND.mul_(3)
    for layer, was in zip((one, other), before, strict=True):
        torch.testing.assert_close(layer(x_ND) - layer.bias_O, 3 * (was - layer.bias_O))


@torch.no_grad()
def test_zeros_give_the_bias_and_what_is_not_finite_stays_so() -> None:
    linear = nn.Linear(4, 2)
    x_ND = torch.tensor([[0.0, 0, 0, 0], [1, float("nan"), 0, 0], [1, 2, 3, 4]])
    found = Int8Linear(linear, Splitter())(x_ND)
    assert torch.equal(found[0], linear.bias)
    assert found[1].isnan().all() and found[2].isfinite().all()
    assert Int8Linear(linear, Splitter())(x_ND[:0]).shape == (0, 2)


@torch.no_grad()
def test_weights_that_have_eight_bits_are_exact() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.copy_(torch.tensor([[127.0, -3.0], [0.5, 0.25]]))
    linear.bias.copy_(torch.tensor([1.0, 0.0]))
    linear.weight[1] *= 127 / 64  # 0.9921875 = 127 x 2^-7, 63.5 steps of it
    state = Int8Linear(linear, Splitter()).state_dict()
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


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_in_int8_does_not_depend_on_its_company(name: str) -> None:
    opened = open_model(GOLDEN / name, dtype="int8")
    settings = Settings(max_new_tokens=8, seed=3)
    contexts = [opened.family.context(Dialogue((text,)), 32) for text in ("你好", "今天天气真不错，去哪里玩", "好")]
    together = generate(opened, contexts, settings, rows=3)
    for number, context in enumerate(contexts):
        [alone] = generate(opened, [context], settings, rows=3, places=[Place(number)])
        assert (alone.ids, alone.logprobs) == (together[number].ids, together[number].logprobs)


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
