"""The network's promises: memory in both forms says the same, batches do not mix, what is saved comes back."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import hanmo
from hanmo.errors import ConfigError, UnsupportedError
from hanmo.families.transformer_xl import original_format
from hanmo.families.transformer_xl.modeling import MemoryState, TransformerXLConfig, TransformerXLModel
from hanmo.families.transformer_xl.relative import visible
from hanmo.families.weight_map import expand
from hanmo.training.trainable import checkpoint_layers

VOCABULARY = 40
VARIANTS = [pytest.param(True, id="relative"), pytest.param(False, id="absolute")]


def model(**changes: Any) -> TransformerXLModel:
    """A small network whose every parameter is random, so that a term that is forgotten shows."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    lengths = {"segment_length": 6, "memory_length": 4, "max_position_embeddings": 300}
    torch.manual_seed(0)
    network = TransformerXLModel(TransformerXLConfig(**{**sizes, **lengths, **changes}))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network.eval()


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(length))


def positions(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count)[None, None]


@pytest.mark.parametrize("relative", VARIANTS)
@pytest.mark.parametrize("pieces", [(3, 1, 1, 1), (1, 5, 2), (20, 3, 1), (4,) + (1,) * 90], ids=str)
@torch.no_grad()
def test_keys_and_values_equal_hidden_states(relative: bool, pieces: tuple[int, ...]) -> None:
    """However a text is fed, decoding says what one forward pass, and what carried hidden states say."""
    network = model(relative=relative)
    span = network.config.span
    ids = random_ids(1, sum(pieces))
    whole = network(input_ids=ids).logits
    logits, state = network.prefill(ids[:, : pieces[0]], torch.ones(1, pieces[0]), positions(0, pieces[0])[0])
    decoded = [logits]
    network.config.memory_length, network.config.segment_length = span, 1  # the same span, all of it memory
    assert network.config.span == span
    remembered, memory, first = [], (), 0
    for place, count in enumerate(pieces):
        piece = ids[:, first : first + count]
        if place:
            decoded.append(network.step(piece, positions(first, count), state))
        numbers = None if relative else positions(first, count)[0]
        output = network(input_ids=piece, position_ids=numbers, memory=memory)
        remembered.append(output.logits)
        memory = output.memory
        first += count
    torch.testing.assert_close(torch.cat(remembered, 1), whole, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(decoded, 1), whole[:, pieces[0] - 1 :], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_span_is_felt() -> None:
    """A token sees exactly ``span`` tokens before it in one layer; the one before that changes nothing."""
    network = model(num_layers=1)
    span = network.config.span
    ids = random_ids(1, span + 3)
    last = network(input_ids=ids).logits[0, -1]
    for place, changes in ((1, False), (2, True)):  # span + 1 and span tokens before the last
        other = ids.clone()
        other[0, place] = (other[0, place] + 1) % VOCABULARY
        assert torch.equal(network(input_ids=other).logits[0, -1], last) != changes


@pytest.mark.parametrize("relative", VARIANTS)
@torch.no_grad()
def test_left_filled_batch_equals_rows_alone(relative: bool) -> None:
    network = model(relative=relative)
    lengths, steps = (1, 5, 17), 70
    prompts = [random_ids(1, length) for length in lengths]
    width = max(lengths)
    ids = torch.cat([torch.nn.functional.pad(one, (width - one.shape[1], 0)) for one in prompts])
    real = torch.cat([torch.nn.functional.pad(torch.ones_like(one), (width - one.shape[1], 0)) for one in prompts])
    numbers = (real.cumsum(1) - 1).clamp_min(0)
    logits, state = network.prefill(ids, real, numbers)
    starts = torch.tensor(lengths)[:, None, None]
    fed = random_ids(len(lengths), steps)
    together = [logits] + [network.step(fed[:, k : k + 1], starts + k, state) for k in range(steps)]
    for row, prompt in enumerate(prompts):
        alone = network(input_ids=torch.cat([prompt, fed[row : row + 1]], 1)).logits[:, prompt.shape[1] - 1 :]
        torch.testing.assert_close(torch.cat(together, 1)[row : row + 1], alone, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_state_is_taken_by_rows() -> None:
    network = model()
    ids = random_ids(2, 9)
    _, state = network.prefill(ids, torch.ones_like(ids))
    taken = state.take(torch.tensor([1, 1, 0]))
    feed = random_ids(2, 1)
    expected = network.step(feed, positions(9, 1), state)
    got = network.step(feed[[1, 1, 0]], positions(9, 1), taken)
    torch.testing.assert_close(got, expected[[1, 1, 0]], atol=1e-6, rtol=0)


@torch.no_grad()
def test_state_does_not_grow() -> None:
    network = model()
    _, state = network.prefill(random_ids(1, 4), torch.ones(1, 4))
    for place in range(400):
        network.step(random_ids(1, 1), positions(place, 1), state)
        assert state.length <= network.config.span + 64 + 1
    assert isinstance(state, MemoryState) and state.position_keys[0].shape[1] <= 64


def test_memory_is_detached_and_cropped() -> None:
    network = model()
    first = network(input_ids=random_ids(2, 3), memory=())
    assert [tuple(kept.shape) for kept in first.memory] == [(2, 3, 16)] * 3
    second = network(input_ids=random_ids(2, 3), memory=first.memory)
    assert {kept.shape[1] for kept in second.memory} == {network.config.memory_length}
    assert not any(kept.requires_grad for kept in second.memory)
    assert network(input_ids=random_ids(2, 3)).memory is None
    assert model(memory_length=0)(input_ids=random_ids(2, 3), memory=()).memory == ()


def test_visible_by_hand() -> None:
    reach = torch.tensor([[0, 1, 0]])
    mask = visible(3, 5, 2, torch.tensor([[1, 1, 1]]), reach, reach.device)
    assert mask[0, 0].int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    filled = visible(2, 4, 9, torch.tensor([[0, 1]]), None, reach.device)  # memory is real, the first new token is not
    assert filled[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 1]]


@pytest.mark.parametrize("relative", VARIANTS)
def test_gradient_checkpointing_changes_nothing(relative: bool) -> None:
    still = dict.fromkeys(("embedding_dropout", "attention_dropout", "hidden_dropout"), 0.0)
    gradients = []
    for checkpointing in (False, True):
        network = model(relative=relative, **still).train()
        if checkpointing:
            checkpoint_layers(network, selective=False)
        ids = random_ids(2, 6)
        memory = network(input_ids=ids, memory=()).memory
        network(input_ids=ids, labels=ids, memory=memory).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("relative", VARIANTS)
def test_saved_and_opened(relative: bool, tmp_path: Any) -> None:
    hanmo.register()
    network = model(relative=relative, half_positions=True)
    network.save_pretrained(tmp_path)
    back, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert isinstance(back, TransformerXLModel) and back.config.half_positions
    assert back.lm_head.weight is back.embed_tokens.weight
    ids = random_ids(1, 5)
    assert torch.equal(back.eval()(input_ids=ids).logits, network(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_are_not_rounded(dtype: torch.dtype, tmp_path: Any) -> None:
    network = model()
    exact = network.positions.inv_freq.clone()
    network.save_pretrained(tmp_path)
    opened = TransformerXLModel.from_pretrained(tmp_path, dtype=dtype)
    for changed in (network.to(dtype), opened):
        assert changed.embed_tokens.weight.dtype == dtype
        assert torch.equal(changed.positions.inv_freq, exact)


@pytest.mark.parametrize("relative", VARIANTS)
def test_fresh_weights(relative: bool) -> None:
    torch.manual_seed(0)
    network = TransformerXLModel(
        TransformerXLConfig(vocab_size=400, hidden_size=64, num_layers=8, num_heads=4, relative=relative)
    )
    block = network.layers[3]
    for projection in (block.attention.q_proj, block.up_proj):
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for into_residual in (block.attention.o_proj, block.down_proj):
        assert into_residual.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert not block.attention.q_proj.bias.any() and not block.mlp_norm.bias.any()
    assert torch.equal(block.mlp_norm.weight, torch.ones(64))
    if relative:
        assert not network.r_w_bias.any() and not network.r_r_bias.any()
        assert network.positions.inv_freq[1].item() == pytest.approx(10000 ** (-2 / 64))


@pytest.mark.parametrize("name", original_format.SIZES)
def test_released_sizes(name: str) -> None:
    size = original_format.SIZES[name]
    config = TransformerXLConfig(**size.config)
    with torch.device("meta"):
        network = TransformerXLModel(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == size.parameters
    layout = original_format.RELATIVE if config.relative else original_format.ABSOLUTE
    mapped = [ours for entry in expand(layout.entries, config) for ours in entry.ours]
    assert sorted([*mapped, "lm_head.weight"]) == sorted(network.state_dict())


def test_published_parameter_count() -> None:
    assert original_format.SIZES["txl-2.9b"].parameters == 2_855_577_600


@torch.no_grad()
def test_learned_positions_end() -> None:
    network = model(relative=False, max_position_embeddings=8)
    with pytest.raises(UnsupportedError, match=r"position 8: .*0 to 7"):
        network(input_ids=random_ids(1, 9))


@pytest.mark.parametrize("wrong", [{"num_heads": 3}, {"segment_length": 0}, {"memory_length": -1}])
def test_impossible_configurations(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TransformerXLConfig(hidden_size=16, **{"num_heads": 2, **wrong})
