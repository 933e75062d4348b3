"""Conversion: the ways there and back are bit-identical, the target is whole or absent, the source is never touched."""

import argparse
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.originals.recognise import recognise
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.cli import app
from hanmo.errors import CheckpointError, ConfigError, UnsupportedError
from hanmo.nn.row_model import attach_value_head
from tests import processes
from tests.unit.checkpoint_files import HUB, MEGATRON, logits, original_tensors, tiny_eva, write_hub, write_megatron


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    return write_megatron(tmp_path / "megatron", lr_scheduler={"num_iters": 7}, csr_tensor_module_names=set())


def to_hanmo(source: Path, target: Path, **more: Any) -> dict[str, Any]:
    config = source / "model_config.json"
    return convert(source, target, config=config if config.is_file() else None, **more)


def assert_same(one: Path, other: Path) -> None:
    """The same tensors under the same names with the same dtypes, and the same state beside them."""
    first, second = find_weights(one), find_weights(other)
    assert first.state == second.state
    for tensors, others in zip(first.ranks, second.ranks, strict=True):
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]), name


def digest(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_way_back_to_megatron_is_bit_identical(tmp_path: Path, megatron: Path) -> None:
    before = digest(megatron)
    report = to_hanmo(megatron, tmp_path / "ours")
    assert (report["form"], report["dtype"], report["files"]) == ("hanmo", "fp16", ["model.safetensors"])
    assert report["parameters"] == sum(tensor.numel() for tensor in tiny_eva().network.state_dict().values())
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert_same(megatron, tmp_path / "back")
    tracker = "latest_checkpointed_iteration.txt"
    assert (tmp_path / "back" / tracker).read_bytes() == (megatron / tracker).read_bytes()
    assert digest(megatron) == before


def test_what_lies_beside_the_weights_is_the_same_for_the_original_programs_after_the_way_back(tmp_path: Path) -> None:
    state = {
        "args": argparse.Namespace(load=Path("/data"), params_dtype=torch.float16, best=np.float64(2.5)),
        "random_rng_state": random.getstate(),
        "np_rng_state": ("MT19937", 3, [1, 2]),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
        "kind": np.dtype("float32"),
    }
    original = write_megatron(tmp_path / "original", **state)
    to_hanmo(original, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    back = torch.load(tmp_path / "back" / "7" / "mp_rank_00_model_states.pt", weights_only=False)
    tracker = "rng_tracker_states"
    assert torch.equal(back[tracker].pop("model-parallel-rng"), state[tracker]["model-parallel-rng"])  # type: ignore[index]
    assert {name: back[name] for name in state} == {**state, tracker: {}}
    assert type(back["args"].load) is type(Path())


def test_a_tensor_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    original = write_megatron(tmp_path / "original", rotations=torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(UnsupportedError, match=r"a tensor of torch\.complex64, which hanmo does not write"):
        to_hanmo(original, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_way_back_to_the_hub_layout_is_bit_identical(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", model_type="eva")
    convert(hub, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert_same(hub, tmp_path / "back")
    for name in ("config.json", "vocab.txt"):
        assert json.loads((hub / "config.json").read_text()) == json.loads((tmp_path / "back/config.json").read_text())
        assert (tmp_path / "back" / name).is_file()


def test_what_the_original_lacked_is_not_there_on_the_way_back(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in original_tensors(HUB).items() if name != "role_embeds.weight"}
    del tensors["decoder.embed_tokens.weight"]
    hub = write_hub(tmp_path / "hub", tensors)
    report = convert(hub, tmp_path / "ours")
    assert report["notes"] == ["the source lacks role_embeds.weight: written as zeros"]
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert_same(hub, tmp_path / "back")


def test_converted_folders_compute_the_same(tmp_path: Path, megatron: Path) -> None:
    to_hanmo(megatron, tmp_path / "ours")
    original = open_model(megatron, config=megatron / "model_config.json", device="cpu")
    assert torch.equal(logits(open_model(tmp_path / "ours", device="cpu").network), logits(original.network))


def test_a_model_that_was_never_an_original_goes_to_the_familys_layout(tmp_path: Path) -> None:
    from hanmo.checkpoints import save_model

    save_model(tiny_eva(), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "m", to="original", dtype="fp16")
    weights = find_weights(tmp_path / "m")
    assert (weights.container, weights.iteration) == ("megatron", 1)
    tensors = original_tensors(MEGATRON)
    assert weights.ranks[0].keys() == tensors.keys()
    assert all(torch.equal(weights.ranks[0][name], tensor) for name, tensor in tensors.items())


def test_splitting_needs_no_configuration_and_merges_back(tmp_path: Path, megatron: Path) -> None:
    report = convert(megatron, tmp_path / "two", to="original", ranks=2)
    assert len(report["files"]) == 2
    state = find_weights(tmp_path / "two").state
    assert (state["mp_world_size"], state["csr_tensor_module_names"]) == (2, None)
    convert(tmp_path / "two", tmp_path / "one", to="original", ranks=1)
    merged, original = find_weights(tmp_path / "one").ranks[0], find_weights(megatron).ranks[0]
    assert all(torch.equal(merged[name], tensor) for name, tensor in original.items())
    assert_same_logits(tmp_path / "two", megatron)


def assert_same_logits(split: Path, megatron: Path) -> None:
    facts: dict[str, Any] = {"config": megatron / "model_config.json", "vocab": megatron / "vocab.txt", "device": "cpu"}
    assert torch.equal(logits(open_model(split, **facts).network), logits(open_model(megatron, **facts).network))


def test_the_way_back_to_a_split_original_is_split_again(tmp_path: Path, megatron: Path) -> None:
    convert(megatron, tmp_path / "two", to="original", ranks=2)
    convert(tmp_path / "two", tmp_path / "ours", config=megatron / "model_config.json", vocab=megatron / "vocab.txt")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert_same(tmp_path / "two", tmp_path / "back")


def test_shards_hold_only_their_own_bytes(tmp_path: Path, megatron: Path) -> None:
    """The original's script saved slices with their whole storage, so that shards hardly shrank."""
    for tensors in find_weights_of(convert(megatron, tmp_path / "two", to="original", ranks=2)):
        for name, tensor in tensors.items():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def find_weights_of(report: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    return [torch.load(Path(report["target"]) / name, weights_only=False)["module"] for name in report["files"]]


def test_tensors_under_several_names_are_stored_once(tmp_path: Path, megatron: Path) -> None:
    (tensors,) = find_weights_of(convert(megatron, tmp_path / "copy", to="original"))
    words = [tensor for name, tensor in tensors.items() if name.endswith("word_embeds.weight")]
    assert len(words) == 3 and len({tensor.data_ptr() for tensor in words}) == 1


def test_what_does_not_divide_is_refused_before_anything_is_written(tmp_path: Path, megatron: Path) -> None:
    with pytest.raises(CheckpointError, match=r"project\.weight: dimension 0 has 16, .* 5 does not divide 16"):
        convert(megatron, tmp_path / "five", to="original", ranks=5)
    with pytest.raises(CheckpointError, match="2 attention heads cannot be split over 4 ranks"):
        convert(megatron, tmp_path / "four", to="original", ranks=4, config=megatron / "model_config.json")
    assert [item.name for item in tmp_path.iterdir()] == ["megatron"]


def test_a_vocabulary_that_does_not_divide_is_filled_up_and_back(tmp_path: Path) -> None:
    """Zeros in the split files, and nowhere else: whole, split otherwise, opened and in our form it is as it was."""
    tensors = original_tensors(MEGATRON)
    rows = len(tensors["lm_head.weight"]) - 1
    short = {key: tensors[key][:rows].clone() for key in ("word_embeds.weight", "lm_head.weight")}
    for name in tensors:
        if name.endswith(("word_embeds.weight", "lm_head.weight")):
            tensors[name] = short[name.removeprefix("encoder.").removeprefix("decoder.")]
    whole = write_megatron(tmp_path / "whole", tensors)
    (whole / "vocab.txt").write_text("\n".join(list(tiny_eva().tokenizer.get_vocab())[:rows]), encoding="utf-8")
    facts = {"config": whole / "model_config.json", "vocab": whole / "vocab.txt"}
    report = convert(whole, tmp_path / "two", to="original", ranks=2)
    assert report["notes"] == [
        f"2 does not divide the vocabulary's {rows} rows: filled up with zeros, which hanmo leaves out again"
    ]
    split = find_weights(tmp_path / "two")
    assert split.state["vocabulary_rows"] == rows
    for name in ("word_embeds.weight", "lm_head.weight"):
        pieces = torch.cat([rank[name] for rank in split.ranks])
        assert len(pieces) == rows + 1 and not pieces[-1].any() and torch.equal(pieces[:-1], tensors[name])
    convert(tmp_path / "two", tmp_path / "one", to="original", ranks=1)
    assert_same(whole, tmp_path / "one")
    convert(tmp_path / "two", tmp_path / "ours", **facts)
    convert(whole, tmp_path / "direct", **facts)
    assert_same(tmp_path / "ours", tmp_path / "direct")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert_same(tmp_path / "two", tmp_path / "back")
    assert_same_logits(tmp_path / "two", whole)
    assert not [
        check for check in inspect_model(tmp_path / "two", deep=True, **facts).checks if check.verdict == "fault"
    ]

    split.state["vocabulary_rows"] = rows + 2
    with pytest.raises(
        CheckpointError, match=rf"vocabulary_rows is {rows + 2}, but word_embeds.weight has {rows + 1} rows"
    ):
        recognise(split).check_copies()


def test_dtypes_are_converted_and_the_loss_is_said(tmp_path: Path, megatron: Path) -> None:
    assert to_hanmo(megatron, tmp_path / "fp32", dtype="fp32")["notes"] == []
    report = convert(tmp_path / "fp32", tmp_path / "bf16", dtype="bf16")
    assert report["notes"] == ["fp32 to bf16 rounds: each weight by up to 3.9e-03 of its size, and by more below 1e-38"]
    wide, narrow = find_weights(tmp_path / "fp32").ranks[0], find_weights(tmp_path / "bf16").ranks[0]
    assert all(torch.equal(narrow[name], tensor.bfloat16()) for name, tensor in wide.items())
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_number_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tensors = {name: tensor.float() for name, tensor in original_tensors(HUB).items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    tensors["lm_head.weight"][0, 0] = 1e6
    hub = write_hub(tmp_path / "hub", tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: holds 1e\+06, which does not fit fp16; use bf16"):
        convert(hub, tmp_path / "ours", dtype="fp16")
    assert [item.name for item in tmp_path.iterdir()] == ["hub"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    hub, target = write_hub(tmp_path / "hub"), tmp_path / "ours"
    target.mkdir()
    (target / "diary.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty; choose another folder, or give --force"):
        convert(hub, target)
    convert(hub, target, force=True)
    assert (target / "diary.txt").read_text() == "mine"
    assert open_model(target, device="cpu")


@pytest.mark.parametrize("place", [".", "..", "inside"])
def test_the_source_is_never_the_target(tmp_path: Path, place: str) -> None:
    hub = write_hub(tmp_path / "inside" / "hub")
    with pytest.raises(CheckpointError, match="is the source, holds it or lies in it"):
        convert(hub, hub / place, force=True)


@pytest.mark.parametrize(("to", "said"), [("hanmo", False), ("original", True), ("hf", True)])
def test_what_becomes_of_a_value_head_is_said(tmp_path: Path, to: str, said: bool) -> None:
    opened = tiny_eva()
    attach_value_head(opened.network, "linear")
    save_model(opened, tmp_path / "reward")
    opened.network.value_head = opened.network.config.value_head = None
    notes = convert(tmp_path / "reward", tmp_path / "out", to=to)["notes"]
    assert any("the value head has no place" in note for note in notes) == said


@pytest.mark.parametrize("size", [100, 10_000, 20_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, megatron: Path, size: int) -> None:
    with processes.no_file_above(size):
        with pytest.raises(CheckpointError, match=r"cannot be written: .*File too large; nothing has been changed$"):
            convert(megatron, tmp_path / "two", to="original", ranks=2)
        with pytest.raises(CheckpointError, match="cannot be written"):
            to_hanmo(megatron, tmp_path / "ours")
    assert [item.name for item in tmp_path.iterdir()] == ["megatron"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    hub = write_hub(tmp_path / "hub")
    with pytest.raises(KeyboardInterrupt):
        convert(hub, tmp_path / "ours")
    assert [item.name for item in tmp_path.iterdir()] == ["hub"]


def test_progress_adds_up(tmp_path: Path, megatron: Path) -> None:
    for to in ("hanmo", "original"):
        totals: list[int] = []
        done: list[int] = []
        to_hanmo(megatron, tmp_path / to, to=to, start=totals.append, progress=done.append)
        assert totals == [sum(done)] and len(done) > 10


def test_senseless_wishes_are_refused(tmp_path: Path, megatron: Path) -> None:
    with pytest.raises(ConfigError, match="unknown form 'orginal': did you mean original"):
        convert(megatron, tmp_path / "x", to="orginal")
    with pytest.raises(ConfigError, match="unknown dtype 'float16'"):
        convert(megatron, tmp_path / "x", dtype="float16")
    with pytest.raises(ConfigError, match="together with --to original"):
        convert(megatron, tmp_path / "x", ranks=2)


def test_an_architecture_that_transformers_lacks_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hanmo.families.base import Family
    from hanmo.families.eva.family import EvaFamily

    monkeypatch.setattr(EvaFamily, "as_transformers", Family.as_transformers)
    with pytest.raises(UnsupportedError, match="transformers has no architecture that computes what eva does"):
        convert(write_hub(tmp_path / "hub"), tmp_path / "hf", to="hf")
    assert [item.name for item in tmp_path.iterdir()] == ["hub"]


def test_the_command_splits_and_prints(tmp_path: Path, megatron: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["convert", str(megatron), str(tmp_path / "two"), "--tensor-parallel", "2", "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["form"] == "original"
    assert printed["files"] == ["7/mp_rank_00_model_states.pt", "7/mp_rank_01_model_states.pt"]
    again = runner.invoke(app, ["convert", str(megatron), str(tmp_path / "two"), "--tensor-parallel", "2"])
    assert isinstance(again.exception, CheckpointError)
    wishes = ["--to", "original", "--verify", "--resume", "--dtype", "bf16"]
    result = runner.invoke(app, ["convert", str(megatron), str(tmp_path / "one"), *wishes])
    assert result.exit_code == 0 and "fp16 to bf16 rounds" in result.output, result.output


def test_no_file_of_an_export_names_the_draft_that_it_was_written_in(tmp_path: Path) -> None:
    convert(write_hub(tmp_path / "hub"), tmp_path / "exported", to="hf")
    assert (tmp_path / "exported" / "README.md").read_text(encoding="utf-8").splitlines()[0] == "# EVA as T5"
    convert(tmp_path / "hub", tmp_path / "ours")
    texts = [
        path for name in ("exported", "ours") for path in (tmp_path / name).iterdir() if path.suffix != ".safetensors"
    ]
    assert len(texts) > 6 and not [path for path in texts if b".partial" in path.read_bytes()]
