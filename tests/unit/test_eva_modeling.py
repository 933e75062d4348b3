"""EVA's network: decoding agrees with the full forward, packing with single rows, the head stays untied."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM

import hanmo
from hanmo.families.eva.biases import masked_bias, relative_buckets
from hanmo.families.eva.modeling import EvaConfig, EvaModel, EvaNorm

SIZES = {
    "vocab_size": 50,
    "d_model": 24,
    "d_ff": 32,
    "d_kv": 5,
    "num_heads": 3,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "initializer_range": 0.2,
}


@pytest.fixture(params=[True, False], ids=["scaled", "unscaled"])
def model(request) -> EvaModel:
    return tiny(attn_scale=request.param)


def tiny(**changes) -> EvaModel:
    torch.manual_seed(0)
    return EvaModel(EvaConfig(**{**SIZES, **changes})).eval()


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def at(column: int, rows: int, width: int = 1) -> Tensor:
    """Positions (R, 1, q) of the next ``width`` tokens from a column on."""
    return torch.arange(column, column + width).expand(rows, 1, width)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_steps_agree_with_the_full_forward(model):
    """Sources of unequal length filled on the left; some tokens alone, some several at a time."""
    lengths, decoder_ids = [9, 4, 6], ids(3, 8)
    sources = [ids(length, seed=length) for length in lengths]
    alone = [
        model(input_ids=s[None], decoder_input_ids=d[None]).logits for s, d in zip(sources, decoder_ids, strict=True)
    ]
    full = torch.cat(alone)
    filled = torch.stack([torch.cat([torch.zeros(9 - len(s), dtype=torch.long), s]) for s in sources])
    mask = torch.stack([(torch.arange(9) >= 9 - length).long() for length in lengths])
    logits, state = model.prefill(filled, mask, decoder_ids[:, :2])
    close(logits, full[:, 1:2])
    for start, end in ((2, 3), (3, 6), (6, 7), (7, 8)):
        close(model.step(decoder_ids[:, start:end], at(start, 3, end - start), state), full[:, start:end])


@torch.no_grad()
def test_openings_of_unequal_length(model):
    source, decoder_ids = ids(2, 6), ids(2, 7)
    mask, shorter = torch.ones_like(source), 2
    opening = torch.stack([decoder_ids[0, :4], torch.cat([torch.zeros(shorter, dtype=torch.long), decoder_ids[1, :2]])])
    opening_mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    logits, state = model.prefill(source, mask, opening, opening_mask)
    full = model(input_ids=source, decoder_input_ids=decoder_ids).logits
    close(logits[:, 0], torch.stack([full[0, 3], full[1, 1]]))
    positions = torch.tensor([[[4]], [[2]]])
    logits = model.step(torch.stack([decoder_ids[0, 4:5], decoder_ids[1, 2:3]]), positions, state)
    close(logits[:, 0], torch.stack([full[0, 4], full[1, 2]]))


@settings(max_examples=25)
@example([[0, 0, 1, 1], [2, 3]])  # two rows of the second source, as many as there are sources
@example([[0, 0], [1]])
@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=12), min_size=1, max_size=3))
@torch.no_grad()
def test_taken_rows_go_on_as_themselves(choices):
    """Whatever rows are taken, in whatever order and number, each goes on as the row it was."""
    model = tiny()
    source, decoder_ids = ids(3, 5), ids(3, 2 + len(choices))
    full = model(input_ids=source, decoder_input_ids=decoder_ids).logits
    _, state = model.prefill(source, torch.ones_like(source), decoder_ids[:, :1])
    now = [0, 1, 2]
    for column, rows in enumerate(choices, 1):
        rows = [row % len(now) for row in rows]
        state, now = state.take(torch.tensor(rows)), [now[row] for row in rows]
        logits = model.step(decoder_ids[now, column : column + 1], at(column, len(now)), state)
        close(logits[:, 0], full[now, column])


@torch.no_grad()
def test_beams_share_the_encoder_side(model):
    source = ids(2, 5)
    _, state = model.prefill(source, torch.ones_like(source), ids(2, 1))
    beams = state.take(torch.tensor([0, 0, 0, 1, 1, 1])).take(torch.tensor([2, 0, 0, 5, 3, 3]))
    assert beams.keys[0].shape[0] == 6
    assert all(ours[0] is theirs[0] for ours, theirs in zip(beams.cross, state.cross, strict=True))
    second_done = beams.take(torch.tensor([0, 1, 2]))
    assert second_done.cross[0][0].shape[0] == 1


@torch.no_grad()
def test_packed_rows_give_the_same_as_single_ones(model):
    """Two examples in one row, told apart by their numbers in the masks."""
    lengths, decoder_lengths = [4, 6], [3, 5]
    sources = [ids(1, length, seed=length) for length in lengths]
    targets = [ids(1, length, seed=length + 20) for length in decoder_lengths]
    alone = [model(input_ids=s, decoder_input_ids=t).logits for s, t in zip(sources, targets, strict=True)]
    packed = model(
        input_ids=torch.cat(sources, 1),
        decoder_input_ids=torch.cat(targets, 1),
        attention_mask=torch.repeat_interleave(torch.tensor([1, 2]), torch.tensor(lengths))[None],
        decoder_attention_mask=torch.repeat_interleave(torch.tensor([1, 2]), torch.tensor(decoder_lengths))[None],
    ).logits
    close(packed, torch.cat(alone, 1))


def test_masked_bias_by_hand():
    bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    allowed = torch.tensor([[True, False], [False, False]])[None, None]
    expected = [[1.0, -torch.inf], [-9997.0, -9996.0]]  # a query that sees nothing stays finite
    assert masked_bias(bias, allowed)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("relative", "both_ways", "backwards"),
    [(0, 0, 0), (3, 19, 0), (-3, 3, 3), (-8, 8, 8), (-16, 10, 16), (-500, 15, 31)],
)
def test_buckets_by_hand(relative, both_ways, backwards):
    """8 exact buckets a way, then 8 + trunc(8 ln(r/8) / ln 16); one way only: 16 exact, then up to 31."""
    assert relative_buckets(torch.tensor(relative), 32, True) == both_ways
    assert relative_buckets(torch.tensor(relative), 32, False) == backwards


def test_norm_by_hand():
    norm = EvaNorm(2, epsilon=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 8.0]) / 12.5**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_gradients(dtype):
    """Those of the formula as autograd finds them; rows of zeros and of large numbers among them."""
    torch.manual_seed(0)
    norm = EvaNorm(5, epsilon=1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    hidden = torch.randn(2, 3, 5).mul(torch.tensor([0.0, 1.0, 100.0])[:, None]).to(dtype).requires_grad_()
    wanted = torch.randn(2, 3, 5).to(dtype)
    found = torch.autograd.grad(norm(hidden), (hidden, norm.weight), wanted)
    normal = hidden * torch.rsqrt(hidden.float().square().mean(-1, keepdim=True) + norm.epsilon)
    expected = torch.autograd.grad(norm.weight * normal.to(dtype), (hidden, norm.weight), wanted)
    exact = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.02}
    torch.testing.assert_close(found, expected, **exact)


def test_layers_read_one_copy_under_autocast():
    """Query, key and value projections keep the same tensor for the backward pass, not three."""
    model, seen = tiny(), []
    for name in ("q_proj", "k_proj", "v_proj"):
        layer = getattr(model.encoder.blocks[0].attn, name)
        layer.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids(1, 4), decoder_input_ids=ids(1, 3))
    assert [tensor.dtype for tensor in seen] == [torch.bfloat16] * 3
    assert len({tensor.data_ptr() for tensor in seen}) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_steps(dtype):
    model = tiny().to(dtype)
    source, decoder_ids = ids(2, 5), ids(2, 3)
    full = model(input_ids=source, decoder_input_ids=decoder_ids).logits
    _, state = model.prefill(source, torch.ones_like(source), decoder_ids[:, :2])
    logits = model.step(decoder_ids[:, 2:], at(2, 2), state)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits[:, 0], full[:, 2], atol=0.05, rtol=0.02)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(model, reentrant):
    batch = {"input_ids": ids(2, 6), "decoder_input_ids": ids(2, 4), "labels": ids(2, 4, seed=3)}
    model.train()
    model(**batch).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model(**batch).loss.backward()
    again = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert plain.keys() == again.keys() == {n for n, _ in model.named_parameters()} - {"role_embeds.weight"}
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=lambda text, n=name: f"{n}: {text}")


def test_dropout_only_in_training():
    model = tiny(dropout_rate=0.5)
    inputs = {"input_ids": ids(1, 4), "decoder_input_ids": ids(1, 3)}
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("loader", [EvaModel, AutoModelForSeq2SeqLM], ids=lambda c: c.__name__)
def test_head_stays_untied(model, loader, tmp_path):
    hanmo.register()
    model.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert isinstance(loaded, EvaModel)
    assert loaded.lm_head.weight.data_ptr() != loaded.word_embeds.weight.data_ptr()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    before = loaded.word_embeds.weight.clone()
    loaded.lm_head.weight.data.zero_()
    assert torch.equal(loaded.word_embeds.weight, before)
    assert loaded.get_input_embeddings() is loaded.word_embeds
    assert loaded.get_output_embeddings() is loaded.lm_head


def test_configuration_travels(tmp_path):
    hanmo.register()
    config = EvaConfig(**SIZES, attn_scale=False, relative_attention_num_buckets=16)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, EvaConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert (loaded.attn_scale, loaded.relative_attention_num_buckets, loaded.d_kv) == (False, 16, SIZES["d_kv"])
    assert not loaded.tie_word_embeddings
    assert EvaConfig(num_layers=7).num_decoder_layers == 7


def test_fresh_weights():
    torch.manual_seed(0)
    model = EvaModel(EvaConfig(**{**SIZES, "vocab_size": 2000, "initializer_range": 0.001}))
    deviation = {name: parameter.std().item() for name, parameter in model.named_parameters()}
    assert deviation["word_embeds.weight"] == pytest.approx(0.02, rel=0.05)
    assert deviation["lm_head.weight"] == pytest.approx(0.001, rel=0.05)
    assert deviation["decoder.blocks.0.cross.q_proj.weight"] == pytest.approx(0.001, rel=0.2)
    assert deviation["encoder.relative_bias.weight"] == pytest.approx(1.0, rel=0.3)
    assert deviation["role_embeds.weight"] == pytest.approx(1.0, rel=0.5)
    assert (model.decoder.final_norm.weight == 1).all()
