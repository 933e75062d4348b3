"""EVA's tables: sizes count right, names cover the network, configurations read with the original's defaults."""

import pytest
import torch

from hanmo.errors import CheckpointError
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.original_format import LAYOUTS, SIZES, read_config
from hanmo.families.weight_map import expand

TINY = {"d_model": 8, "d_ff": 12, "d_kv": 3, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 2}


def blank(**config) -> EvaModel:
    with torch.device("meta"):
        return EvaModel(EvaConfig(**config))


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name):
    size = SIZES[name]
    assert size.parameters == sum(parameter.numel() for parameter in blank(**size.config).parameters())


def test_published_sizes():
    """About 300 M, 970 M and 2.8 B, and names that do not clash."""
    millions = {name: round(size.parameters / 1e6, -1) for name, size in SIZES.items()}
    assert millions == {"eva1.0": 2840, "eva2.0-base": 300, "eva2.0-large": 970, "eva2.0-xlarge": 2840}
    names = [name for key, size in SIZES.items() for name in (key, *size.aliases)]
    assert len(names) == len(set(names))
    one, two = SIZES["eva1.0"].config, SIZES["eva2.0-xlarge"].config
    assert {key for key in one if one[key] != two[key]} == {"attn_scale"}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_names_cover_the_network(layout):
    model = blank(**TINY)
    expanded = expand(layout.entries, model.config)
    ours = [name for entry in expanded for name in entry.ours]
    assert sorted(ours) == sorted(name for name, _ in model.named_parameters())
    theirs = [name for entry in expanded for name in (entry.theirs, *entry.copies)]
    assert len(theirs) == len(set(theirs))
    assert set(layout.signature) <= set(theirs)
    others = {e.theirs for other in LAYOUTS if other is not layout for e in expand(other.entries, model.config)}
    assert not set(layout.signature) <= others


def test_cuts_of_the_original_conversion():
    """Fused projections and first feed-forward layers by rows, what follows them by columns, norms not at all."""
    cut = {entry.theirs.removesuffix(".weight").split(".")[-1]: entry.cut for entry in LAYOUTS[0].entries}
    assert cut == {
        "word_embeds": 0,
        "role_embeds": None,
        "lm_head": 0,
        "project": 0,
        "project_q": 0,
        "project_kv": 0,
        "wi_0": 0,
        "wi_1": 0,
        "dense": 1,
        "wo": 1,
        "relative_attention_bias": 1,
        "layer_norm": None,
        "final_layernorm": None,
    }
    fused = {e.theirs: [name.split(".")[-2] for name in e.ours] for e in LAYOUTS[0].entries if len(e.ours) > 1}
    assert sorted(fused.values()) == [["k_proj", "v_proj"], *[["q_proj", "k_proj", "v_proj"]] * 2]


def test_defaults_of_an_empty_configuration():
    assert read_config({}) == {
        "d_model": 768,
        "d_ff": 256,
        "d_kv": 64,
        "num_heads": 12,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "attn_scale": False,
        "relative_attention_num_buckets": 32,
    }


def test_decoder_layers():
    """Null is as many as the encoder has; absent is 12, whatever the encoder has."""
    assert read_config({"num_layers": 3, "num_decoder_layers": None})["num_decoder_layers"] == 3
    assert read_config({"num_layers": 3})["num_decoder_layers"] == 12


def test_ignored_and_renamed_keys():
    read = read_config(
        {"feed_forward_proj": "relu", "max_position_embeddings": 512, "init_method_std": 0.5, "use_cache": 1}
    )
    assert read.pop("initializer_range") == 0.5
    assert read == read_config({})
    assert read_config({"vocab_size": 77})["vocab_size"] == 77
    EvaConfig(**read_config(TINY))


@pytest.mark.parametrize(("key", "value"), [("d_model", 0), ("num_heads", "12"), ("d_kv", 1.5), ("attn_scale", "no")])
def test_nonsense_is_refused(key, value):
    with pytest.raises(CheckpointError, match=key):
        read_config({key: value})
