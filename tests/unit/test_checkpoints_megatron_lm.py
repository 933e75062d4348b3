"""The Megatron-LM form (iter_N/mp_rank_RR/model_optim_rng.pt), by PanGu-α, with small random weights.

No recorded file exists of it: the names are the specification's, the files are built here by hand.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo.checkpoints import open_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.originals.recognise import recognise
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.errors import CheckpointError
from hanmo.families.base import OpenedModel
from tests.unit.tiny import tiny

IN_A_BLOCK = {
    "input_layernorm": "attention_norm",
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.dense": "attention.o_proj",
    "post_attention_layernorm": "mlp_norm",
    "mlp.dense_h_to_4h": "up_proj",
    "mlp.dense_4h_to_h": "down_proj",
}


@pytest.fixture
def model(tmp_path: Path) -> OpenedModel:
    return tiny("pangu", tmp_path / "pangu")


def language_model(model: OpenedModel) -> dict[str, Any]:
    """The original's nested dict for these weights, by the specification's table."""
    state: dict[str, Tensor] = dict(model.network.state_dict())
    last = model.network.config.num_layers - 1
    transformer = {f"final_layernorm.{kind}": state[f"final_norm.{kind}"] for kind in ("weight", "bias")}
    for layer in range(last + 1):
        block = "topQueryLayer" if layer == last else f"layers.{layer}"
        for theirs, ours in IN_A_BLOCK.items():
            for kind in ("weight", "bias"):
                transformer[f"{block}.{theirs}.{kind}"] = state[f"layers.{layer}.{ours}.{kind}"]
    return {
        "embedding": {
            "word_embeddings": {"weight": state["embed_tokens.weight"]},
            "position_embeddings": {"weight": state["embed_positions.weight"]},
        },
        "transformer": transformer,
        "topQueryEmbedding": {"top_query_embeddings": {"weight": state["embed_queries.weight"]}},
    }


@pytest.fixture
def megatron(model: OpenedModel, tmp_path: Path) -> Path:
    folder = tmp_path / "megatron"
    inside = folder / "iter_0001000" / "mp_rank_00"
    inside.mkdir(parents=True)
    arguments = argparse.Namespace(model_parallel_size=1, hidden_size=32)
    content = {
        "args": arguments,
        "checkpoint_version": 2.0,
        "iteration": 1000,
        "model": {"language_model": language_model(model)},
        "optimizer": {"exp_avg": torch.ones(3)},
    }
    torch.save(content, inside / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("1000")
    model.tokenizer.save_vocabulary(str(folder))
    config = {key: value for key, value in model.network.config.to_dict().items() if key != "model_type"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def content(folder: Path, rank: int = 0) -> dict[str, Any]:
    path = next(folder.glob(f"iter_*/mp_rank_{rank:02d}/model_optim_rng.pt"))
    return torch.load(path, weights_only=False)


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for key, value in nested.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def test_it_opens_as_the_model_it_was_made_of(megatron: Path, model: OpenedModel) -> None:
    opened = open_model(megatron, device="cpu")
    assert "pangu-megatron layout, iteration 1000" in opened.source
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(opened.network.state_dict()[name], tensor), name


@pytest.mark.parametrize("inner", ["iter_0001000", "iter_0001000/mp_rank_00/model_optim_rng.pt"])
def test_the_iteration_folder_and_a_rank_file_can_be_given_too(megatron: Path, inner: str) -> None:
    weights = find_weights(megatron / inner)
    assert (weights.container, weights.iteration, len(weights.ranks)) == ("megatron-lm", 1000, 1)


def test_the_last_block_is_the_query_layer_of_its_own_name(megatron: Path) -> None:
    original = recognise(find_weights(megatron))
    original.require_complete()
    assert original.counts.num_layers == 3
    names = {ours: entry.theirs for entry in original.entries for ours in entry.ours}
    assert names["layers.1.up_proj.bias"] == "transformer.layers.1.mlp.dense_h_to_4h.bias"
    assert names["layers.2.up_proj.bias"] == "transformer.topQueryLayer.mlp.dense_h_to_4h.bias"


def test_the_way_back_is_bit_identical_and_nested_alike(megatron: Path, tmp_path: Path) -> None:
    report = convert(megatron, tmp_path / "ours")
    assert report["notes"] == ["the optimizer's state is not taken along"]
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    before, after = content(megatron), content(tmp_path / "back")
    assert (tmp_path / "back" / "latest_checkpointed_iteration.txt").read_text() == "1000"
    assert (after["args"], after["iteration"], after["checkpoint_version"]) == (before["args"], 1000, 2.0)
    assert after["model"]["language_model"].keys() == before["model"]["language_model"].keys()
    assert (
        after["model"]["language_model"]["transformer"].keys()
        == before["model"]["language_model"]["transformer"].keys()
    )
    one, other = flat(before["model"]), flat(after["model"])
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_splits_cut_by_the_specifications_rules(megatron: Path, tmp_path: Path) -> None:
    """Outputs of query, key, value and h_to_4h with their biases, inputs of the others, rows of the embedding."""
    report = convert(megatron, tmp_path / "two", to="original", ranks=2)
    assert report["files"] == [f"iter_0001000/mp_rank_{rank:02d}/model_optim_rng.pt" for rank in (0, 1)]
    whole = flat(content(megatron)["model"]["language_model"])
    for rank in (0, 1):
        state = content(tmp_path / "two", rank)
        assert state["args"].model_parallel_size == 2
        piece = flat(state["model"]["language_model"])
        for name, tensor in whole.items():
            if "word_embeddings" in name or any(part in name for part in (".query.", ".key.", ".value.", "h_to_4h.")):
                expected = tensor.chunk(2, dim=0)[rank]
            elif name.endswith(("dense.weight", "4h_to_h.weight")):
                expected = tensor.chunk(2, dim=1)[rank]
            else:
                expected = tensor
            assert torch.equal(piece[name], expected), name


@pytest.mark.parametrize(("first", "second"), [(2, 4), (4, 2), (4, 1)])
def test_n_to_m_is_the_split_of_the_whole(megatron: Path, tmp_path: Path, first: int, second: int) -> None:
    convert(megatron, tmp_path / "n", to="original", ranks=first)
    convert(tmp_path / "n", tmp_path / "m", to="original", ranks=second)
    convert(megatron, tmp_path / "direct", to="original", ranks=second)
    for rank in range(second):
        one, other = (flat(content(tmp_path / name, rank)["model"]) for name in ("m", "direct"))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_of_ours_can_become_the_form_by_its_ranks(model: OpenedModel, tmp_path: Path) -> None:
    from hanmo.checkpoints import save_model

    save_model(model, tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "two", to="original", ranks=2)
    assert report["files"][1] == "iter_0000001/mp_rank_01/model_optim_rng.pt"
    pieces = [content(tmp_path / "two", rank)["model"]["language_model"] for rank in (0, 1)]
    rows = torch.cat([piece["embedding"]["word_embeddings"]["weight"] for piece in pieces])
    assert torch.equal(rows, model.network.state_dict()["embed_tokens.weight"])


def test_what_is_wrong_is_said(megatron: Path, tmp_path: Path) -> None:
    assert inspect_model(megatron).healthy
    convert(megatron, tmp_path / "two", to="original", ranks=2)
    (tmp_path / "two/iter_0001000/mp_rank_01/model_optim_rng.pt").unlink()
    with pytest.raises(CheckpointError, match=r"rank 1 of 2 is missing \(mp_rank_01/model_optim_rng\.pt\)"):
        find_weights(tmp_path / "two")
    file = megatron / "iter_0001000/mp_rank_00/model_optim_rng.pt"
    torch.save({"model": {"encoder": {}}, "iteration": 1000}, file)
    with pytest.raises(CheckpointError, match=r"has no 'model\.language_model' with the weights; it holds: encoder"):
        find_weights(megatron)
    circle: dict[str, Any] = {"weight": torch.ones(1)}
    circle["again"] = circle
    torch.save({"model": {"language_model": circle}}, file)
    with pytest.raises(CheckpointError, match="holds something that holds itself"):
        find_weights(megatron)


def test_mindspore_files_are_refused_with_what_to_take_instead(tmp_path: Path) -> None:
    file = tmp_path / "PanguAlpha_2_6b.ckpt"
    file.write_bytes(b"\n2\n\x1bbackbone.top_query_layer")
    for path in (tmp_path, file):
        with pytest.raises(CheckpointError, match=r"a MindSpore checkpoint.*converted form.*pytorch_model\.bin"):
            find_weights(path)
    torch.save({"a": torch.ones(1)}, file)
    assert find_weights(file).names == ["a"], "the same ending is used for files of torch"
