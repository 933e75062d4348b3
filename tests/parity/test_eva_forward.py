"""EVA's forward pass against the original's: hidden states, traces, position biases, logits, losses."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from hanmo.families.eva.biases import relative_buckets
from hanmo.families.eva.modeling import EvaModel
from hanmo.rows import IGNORE
from tests.parity.eva_original import EVA, MODELS, entries, network, original_logits
from tests.places import load, needs_parity

pytestmark = needs_parity("eva")
FIGURES = load(EVA / "forward.json", {})
BUCKETS = load(EVA / "relative_buckets.json", {})
CLOSE = {"atol": 1e-4, "rtol": 0.0}
both_layouts = pytest.mark.parametrize("layout", ["megatron", "hub"])
models = pytest.mark.parametrize("name", FIGURES)


@cache
def recorded(name: str) -> dict[str, Tensor]:
    return load_file(EVA / f"forward_{name}.safetensors")


def padded_inputs(name: str) -> dict[str, Tensor]:
    """The recorded batch with the original's own masks, one per query."""
    cases = recorded(name)
    return {
        "input_ids": cases["padded/enc_input_ids"],
        "decoder_input_ids": cases["padded/dec_input_ids"],
        "attention_mask": cases["padded/enc_attention_mask"],
        "decoder_attention_mask": cases["padded/dec_attention_mask"],
        "cross_attention_mask": cases["padded/cross_attention_mask"],
    }


def row_inputs(name: str) -> dict[str, Tensor]:
    """The same batch as our rows have it: which tokens are real, nothing else."""
    cases = recorded(name)
    return {
        "input_ids": cases["padded/enc_input_ids"],
        "decoder_input_ids": cases["padded/dec_input_ids"],
        "attention_mask": cases["padded/enc_attention_mask"][:, 0, 0],
    }


def captured(
    model: EvaModel, inputs: dict[str, Tensor], forward: Callable[..., Tensor] = original_logits
) -> dict[str, Tensor]:
    """The decoder's output and that of every block and stack, under the names of the recordings."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, arguments, output: found.__setitem__(name, output)

    hooks = []
    for stack, short in (("encoder", "enc"), ("decoder", "dec")):
        hooks.append(getattr(model, stack).register_forward_hook(keep(f"{short}_last_hidden_state")))
        for number, block in enumerate(getattr(model, stack).blocks):
            hooks.append(block.register_forward_hook(keep(f"trace/{stack}_block_{number}")))
    with torch.no_grad():
        found["lm_logits"] = forward(model, **inputs)
    for hook in hooks:
        hook.remove()
    return found


def compare(found: dict[str, Tensor], cases: dict[str, Tensor], prefix: str, every: int = 1) -> None:
    logits = found["lm_logits"]
    found["lm_logits_at_columns"] = logits[:, ::every, cases[f"{prefix}/logits_columns"]]
    found["logits_logsumexp"] = logits.logsumexp(-1)
    found["logits_top5_values"] = logits.topk(5).values
    compared = [name for name in found if f"{prefix}/{name}" in cases]
    assert {"enc_last_hidden_state", "dec_last_hidden_state", "lm_logits_at_columns"} <= set(compared)
    for name in compared:
        torch.testing.assert_close(
            found[name], cases[f"{prefix}/{name}"], **CLOSE, msg=lambda text, n=name: f"{n}: {text}"
        )


@both_layouts
@models
def test_every_position_of_the_padded_batch(name, layout):
    """Padding included: with the original's masks even what nobody reads comes out the same."""
    cases = recorded(name)
    found = captured(network(name, layout), padded_inputs(name))
    compare(found, cases, "padded")
    assert sum(name.startswith("trace/") for name in found) == len([n for n in cases if "_block_" in n])
    logits = found["lm_logits"]
    token_loss = logits.logsumexp(-1) - logits.gather(-1, cases["padded/labels"][..., None]).squeeze(-1)
    torch.testing.assert_close(token_loss, cases["padded/token_loss"], **CLOSE)


@models
def test_roles(name):
    cases = recorded(name)
    roles = {"role_ids": cases["roles/enc_role_ids"], "decoder_role_ids": cases["roles/dec_role_ids"]}
    compare(captured(network(name), padded_inputs(name) | roles), cases, "roles")


@models
def test_distances_beyond_the_last_bucket(name):
    cases = recorded(name)
    encoder_ids = cases["long/enc_input_ids"]
    real = torch.arange(encoder_ids.shape[1]) < cases["long/enc_lengths"][:, None]
    per_query = real[:, :, None] & real[:, None, :]
    queries = cases["long/dec_input_ids"].shape[1]
    inputs = {
        "input_ids": encoder_ids,
        "decoder_input_ids": cases["long/dec_input_ids"],
        "attention_mask": per_query,
        "cross_attention_mask": real[:, None, :].expand(-1, queries, -1),
    }
    compare(captured(network(name), inputs), cases, "long", every=10)


@models
def test_rows_give_the_same_where_it_counts(name):
    """A mask of real tokens is enough: what differs is the output at padding, which nobody reads."""
    cases = recorded(name)
    found = captured(network(name), row_inputs(name), lambda model, **inputs: model(**inputs).logits)
    encoder = cases["padded/enc_attention_mask"][:, 0, 0].bool()
    decoder = cases["padded/loss_mask"].bool()
    for stack, valid in (("enc", encoder), ("dec", decoder)):
        key = f"{stack}_last_hidden_state"
        torch.testing.assert_close(found[key][valid], cases[f"padded/{key}"][valid], **CLOSE)


@models
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_position_bias(name, stack):
    expected = recorded(name)[f"padded/trace/{stack}_position_bias"]
    positions = torch.arange(expected.shape[-1])[None]
    bias = getattr(network(name), stack).position_bias(positions, positions)
    assert torch.equal(bias, expected)
    assert torch.equal(getattr(network(name), stack).position_bias(positions + 7, positions + 7), expected)


@pytest.mark.parametrize("name", [name for name in BUCKETS if name != "relative_position"])
def test_relative_buckets(name):
    direction, _, number = name.partition("_")
    relative = torch.tensor(BUCKETS["relative_position"])
    assert relative_buckets(relative, int(number or 32), direction == "bidirectional").tolist() == BUCKETS[name]


@both_layouts
@models
def test_loss(name, layout):
    """The published loss: the mean over samples of the mean over a sample's tokens."""
    cases = recorded(name)
    mask = cases["padded/loss_mask"].bool()
    labels = cases["padded/labels"].masked_fill(~mask, IGNORE)
    weights_BA = mask / mask.sum(-1, keepdim=True)
    with torch.no_grad():
        output = network(name, layout)(**row_inputs(name), labels=labels, weights=weights_BA)
    assert output.loss.item() == pytest.approx(FIGURES[name]["padded"]["loss"], abs=1e-5)
    per_sample = -(output.logprob * weights_BA).sum(-1)
    torch.testing.assert_close(per_sample, cases["padded/loss_batch"], **CLOSE)


@models
def test_half_precision(name):
    """No further from fp32 than the original's own fp16 is, with room for another order of additions."""
    cases = recorded(name)
    with torch.no_grad():
        logits = network(name, dtype="fp16")(**row_inputs(name)).logits.float()
    valid = cases["padded/loss_mask"].bool()
    expected = cases["padded/lm_logits_at_columns"]
    difference = (logits[..., cases["padded/logits_columns"]] - expected)[valid].abs().max().item()
    assert 0 < difference < 2 * FIGURES[name]["padded"]["fp16_vs_fp32_logits_max_abs_diff_on_valid_positions"]


@models
def test_t5_with_folded_queries(name):
    """An oracle that shares no code with ours: transformers' T5, the attention scale folded into its queries."""
    model = network(name)
    c = model.config
    t5_config = T5Config(
        **{key: getattr(c, key) for key in ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers")},
        num_decoder_layers=c.num_decoder_layers,
        layer_norm_epsilon=c.layer_norm_epsilon,
        relative_attention_num_buckets=c.relative_attention_num_buckets,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    t5_config.tie_word_embeddings = False  # T5Config itself turns this back on, which would tie the head
    t5 = T5ForConditionalGeneration(t5_config)
    folded = {}
    for entry in entries(c, "hub"):
        if entry.theirs != "role_embeds.weight":
            tensor = model.state_dict()[entry.ours[0]]
            scaled = c.attn_scale and entry.theirs.endswith("Attention.q.weight")
            folded |= dict.fromkeys((entry.theirs, *entry.copies), tensor * c.d_kv**-0.5 if scaled else tensor)
    t5.load_state_dict(folded)
    assert not torch.equal(t5.lm_head.weight, t5.shared.weight)
    inputs = row_inputs(name)
    valid = recorded(name)["padded/loss_mask"].bool()
    with torch.no_grad():
        difference = (t5.eval()(**inputs).logits - model(**inputs).logits)[valid]
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_hub_folders_hold_the_same_weights(name):
    hub, original = network(name, "hub").state_dict(), network(name).state_dict()
    differing = {key for key in original if not torch.equal(hub[key], original[key])}
    assert differing <= {"role_embeds.weight"}  # the hub form may lack it
