"""Opening: every form gives the same network, what is undecided is asked, what is wrong is named; saving is whole."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.open import check_vocabulary, choose_dtype
from hanmo.errors import CheckpointError, ConfigError, UnsupportedError, VocabularyError
from hanmo.families.eva import original_format
from hanmo.families.eva.family import EvaFamily
from hanmo.families.weight_map import Layout, Size
from tests.unit.checkpoint_files import (
    HUB,
    MEGATRON,
    config_json,
    logits,
    original_tensors,
    tiny_eva,
    write_hub,
    write_megatron,
    write_vocabulary,
)
from tests.unit.tiny import tiny
from tests.unit.transformers_models import write_model


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    return write_megatron(tmp_path / "megatron")


@pytest.fixture
def two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two released sizes of the tiny shapes that differ in the attention scale, as EVA 1.0 and 2.0-xLarge do."""
    for name, scale in (("tiny1", False), ("tiny2", True)):
        config = {"vocab_size": 30000, **config_json(attn_scale=scale)}
        monkeypatch.setitem(original_format.SIZES, name, Size(config, 1, (f"{name}-alias",)))


def test_every_form_gives_the_same_network(tmp_path: Path, megatron: Path) -> None:
    first = open_model(megatron, config=megatron / "model_config.json", device="cpu")
    hub = open_model(write_hub(tmp_path / "hub"), device="cpu")
    save_model(first, tmp_path / "ours")
    ours = open_model(tmp_path / "ours", device="cpu")
    expected, weights = logits(first.network), first.network.state_dict()
    for other in (hub.network, ours.network):
        assert all(torch.equal(weight, weights[name]) for name, weight in other.state_dict().items())
        # Not to the bit: BLAS rounds by how the weights happen to lie in memory.
        torch.testing.assert_close(logits(other), expected, rtol=0, atol=1e-5)
    assert not torch.equal(ours.network.lm_head.weight, ours.network.word_embeds.weight)
    assert len(ours.tokenizer) == len(first.tokenizer) == ours.network.config.vocab_size
    assert ours.network.config.decoder_start_token_id == ours.tokenizer.bos_token_id
    assert not ours.network.training


def test_it_says_what_was_opened(megatron: Path) -> None:
    opened = open_model(megatron, config=megatron / "model_config.json", device="cpu")
    assert opened.source == f"eva from {megatron} (megatron layout, iteration 7), fp16 computed in fp32"


def test_the_size_is_asked_where_shapes_do_not_decide(megatron: Path, two_sizes: None) -> None:
    with pytest.raises(
        CheckpointError, match=r"tiny1 and tiny2, which compute differently; .*--size tiny1 or --size tiny2"
    ):
        open_model(megatron)
    one = open_model(megatron, size="tiny1", device="cpu")
    two = open_model(megatron, size="TINY2-alias", device="cpu")
    assert (one.network.config.attn_scale, two.network.config.attn_scale) == (False, True)
    assert "tiny2 from" in two.source
    assert not torch.allclose(logits(one.network), logits(two.network))


def test_a_size_that_alone_fits_is_taken(megatron: Path, two_sizes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(original_format.SIZES, "tiny1")
    assert open_model(megatron, device="cpu").network.config.attn_scale


def test_without_size_or_configuration_one_is_asked_for(megatron: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is of no released size .*--config FILE"):
        open_model(megatron)


def test_wrong_sizes_are_named(megatron: Path) -> None:
    with pytest.raises(CheckpointError, match=r"word_embeds\.weight is \(\d+, 16\), expected \(\d+, 768\)"):
        open_model(megatron, size="eva2.0-base")
    with pytest.raises(ConfigError, match=r"unknown size 'eva2\.0-bas': did you mean eva2\.0-base"):
        open_model(megatron, size="eva2.0-bas")
    with pytest.raises(ConfigError, match=r"txl-2\.9b is a size of transformer_xl, but these weights are eva's"):
        open_model(megatron, size="txl-2.9b")
    with pytest.raises(ConfigError, match="not both"):
        open_model(megatron, size="eva1.0", config=megatron / "model_config.json")


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = original_tensors(MEGATRON)
    name = "encoder.blocks.1.self_attn.self_attn.project.weight"
    tensors[name] = tensors[name][:-3]
    folder = write_megatron(tmp_path / "m", tensors)
    rows = 3 * tiny_eva().network.config.num_heads * tiny_eva().network.config.d_kv
    with pytest.raises(
        CheckpointError, match=rf"1 tensors do not .*{name} is \({rows - 3}, 16\), expected \({rows}, 16\)"
    ):
        open_model(folder, config=folder / "model_config.json")


def test_layers_that_the_file_lacks_are_named(megatron: Path) -> None:
    (megatron / "deeper.json").write_text(json.dumps(config_json(num_layers=3)))
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.2\.attn\.q_proj\.weight \(\d+, 16\) is missing"):
        open_model(megatron, config=megatron / "deeper.json")


def test_a_vocabulary_is_needed_and_must_fit(tmp_path: Path, megatron: Path) -> None:
    config = megatron / "model_config.json"
    tokens = (megatron / "vocab.txt").read_text().splitlines()
    short = tmp_path / "short.txt"
    short.write_text("\n".join(tokens[:-1]))
    message = f"the vocabulary has {len(tokens) - 1} tokens, the embedding {len(tokens)} rows"
    with pytest.raises(VocabularyError, match=message):
        open_model(megatron, config=config, vocab=short)
    (megatron / "vocab.txt").unlink()
    with pytest.raises(VocabularyError, match=r"no vocabulary: looked for .*vocab\.txt.*--vocab FILE"):
        open_model(megatron, config=config)
    other = tmp_path / "other.txt"
    other.write_text("a\nb\n")
    with pytest.raises(VocabularyError, match=r"other\.txt: not a vocabulary of eva"):
        open_model(megatron, config=config, vocab=other)
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    write_vocabulary(folder)
    assert open_model(megatron, config=config, vocab=folder, device="cpu").network.config.vocab_size == len(tokens)


def test_rows_beyond_the_vocabulary_are_allowed_up_to_the_familys_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = list(range(50_010))
    monkeypatch.setattr(EvaFamily, "vocab_padded_to", 128)
    for rows in (50_010, 50_048):
        check_vocabulary(EvaFamily, rows, tokenizer, "here")  # type: ignore[arg-type]
    for rows in (50_009, 50_049):
        with pytest.raises(VocabularyError, match=f"50,010 tokens, the embedding {rows:,} rows"):
            check_vocabulary(EvaFamily, rows, tokenizer, "here")  # type: ignore[arg-type]


def test_optional_tensors_that_are_absent_are_zero(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in original_tensors(HUB).items() if name != "role_embeds.weight"}
    opened = open_model(write_hub(tmp_path / "hub", tensors), device="cpu")
    assert not opened.network.role_embeds.weight.any()


@pytest.mark.parametrize(
    ("wanted", "stored", "device", "used"),
    [
        (None, torch.float16, "cpu", torch.float32),
        (None, torch.float16, "cuda", torch.float16),
        (None, torch.bfloat16, "cpu", torch.bfloat16),
        ("bf16", torch.float16, "cpu", torch.bfloat16),
        ("fp16", torch.float32, "cpu", torch.float16),
    ],
)
def test_the_dtype(wanted: str | None, stored: torch.dtype, device: str, used: torch.dtype) -> None:
    assert choose_dtype(wanted, stored, torch.device(device)) == used


def test_an_unknown_dtype_is_answered_with_the_nearest(megatron: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'fp8': known: bf16, fp16, fp32"):
        open_model(megatron, config=megatron / "model_config.json", dtype="fp8")


def test_rule_files_travel_with_the_model(tmp_path: Path, megatron: Path) -> None:
    rules = tmp_path / "rules"
    (rules / "antonym").mkdir(parents=True)
    (rules / "antonym" / "antonym.txt").write_text("('好', '坏')\n")
    opened = open_model(megatron, config=megatron / "model_config.json", rules=rules, device="cpu")
    save_model(opened, tmp_path / "ours")
    shutil.rmtree(rules)
    again = open_model(tmp_path / "ours", device="cpu")
    assert Path(again.family.assets["antonyms"]).read_text() == "('好', '坏')\n"
    with pytest.raises(CheckpointError, match=r"not a folder of eva's rules, it lacks antonym/antonym\.txt"):
        open_model(tmp_path / "ours", rules=tmp_path)


def test_rules_for_a_family_without_any_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EvaFamily, "asset_files", {})
    with pytest.raises(UnsupportedError, match="eva models have no score rules"):
        open_model(write_hub(tmp_path / "hub"), rules=tmp_path)


def ours(folder: Path) -> Path:
    return save_model(tiny_eva(), folder)


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "_forward_module.module."])
@pytest.mark.parametrize("layout", [HUB, MEGATRON], ids=["hub", "megatron"])
def test_weights_that_deepspeed_joined_are_the_model(tmp_path: Path, layout: Layout, wrapper: str) -> None:
    """zero_to_fp32.py writes one file, under the names that the training program gave; they go back as those of a rank."""
    folder, tensors = tmp_path / "joined", original_tensors(layout, torch.float32)
    folder.mkdir()
    torch.save({wrapper + name: tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config_json()))
    write_vocabulary(folder)
    opened = open_model(folder, device="cpu")
    expected = tiny_eva().network.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in opened.network.state_dict().items())
    convert(folder, tmp_path / "ours")
    back = convert(tmp_path / "ours", tmp_path / "back", to="original")
    content = torch.load(tmp_path / "back" / back["files"][0], weights_only=True)
    if layout is MEGATRON:
        assert (tmp_path / "back" / "latest_checkpointed_iteration.txt").read_text() == "1"
        content, wrapper = content["module"], ""
    assert all(torch.equal(content[wrapper + name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_model_folder_stands_for_the_folder(tmp_path: Path, name: str) -> None:
    for folder in (ours(tmp_path / "ours"), write_model("qwen3", tmp_path / "qwen")):
        weights = open_model(folder, device="cpu").network.state_dict()
        again = open_model(folder / name, device="cpu").network.state_dict()
        assert all(torch.equal(again[key], tensor) for key, tensor in weights.items())
        assert inspect_model(folder / name).healthy


def test_a_folder_of_ours_needs_no_help(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="complete in itself: leave out --size"):
        open_model(ours(tmp_path / "m"), size="eva1.0")


def test_a_folder_of_ours_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = ours(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensors missing: lm_head\.weight"):
        open_model(folder)


def test_a_folder_of_a_later_hanmo_is_said(tmp_path: Path) -> None:
    folder = ours(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "hanmo-future"}))
    with pytest.raises(CheckpointError, match="a hanmo that knows the model type 'hanmo-future'"):
        open_model(folder)


@pytest.mark.parametrize("scale", [True, False])
def test_saving_and_opening_keeps_every_weight(tmp_path: Path, scale: bool) -> None:
    opened = tiny_eva()
    config = type(opened.network.config).from_dict({**opened.network.config.to_dict(), "attn_scale": scale})
    network = type(opened.network)(config)
    model = dataclasses.replace(opened, network=network)
    again = open_model(save_model(model, tmp_path / "m"), device="cpu").network
    assert again.config.attn_scale is scale
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.lm_head.weight.data_ptr() != again.word_embeds.weight.data_ptr()


def test_saving_again_keeps_what_else_lies_there_but_no_stale_weights(tmp_path: Path) -> None:
    folder = ours(tmp_path / "run")
    (folder / "report.html").write_text("report")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    ours(folder)
    names = {item.name for item in folder.iterdir()}
    assert "report.html" in names and "model.safetensors" in names
    assert "model-00001-of-00002.safetensors" not in names
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_leaves_the_previous_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ours(tmp_path / "run")
    before = {item.name: item.read_bytes() for item in folder.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device; nothing has been changed"):
        ours(folder)
    with pytest.raises(CheckpointError, match="No space left"):
        ours(tmp_path / "new")
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == before
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["eva", "glm", "pangu", "transformer_xl"])
@pytest.mark.parametrize("damaged", [b"", b"\x0a\x03abc"])
def test_a_damaged_vocabulary_file_is_one_message(tmp_path: Path, name: str, damaged: bytes) -> None:
    opened = tiny(name, tmp_path / "vocabulary")
    save_model(opened, tmp_path / "ours")
    (tmp_path / "ours" / opened.tokenizer.vocab_files_names["vocab_file"]).write_bytes(damaged)
    with pytest.raises(VocabularyError, match="ours: its tokenizer does not open: "):
        open_model(tmp_path / "ours", device="cpu")
    faults = [check for check in inspect_model(tmp_path / "ours").checks if check.verdict == "fault"]
    assert [check.name for check in faults] == ["vocabulary"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_size": 48},
            r"lm_head.weight has the shape \(41, 32\), but config.json describes \(41, 48\), and 20 more",
        ),
        (
            {"intermediate_size": 7},
            r"mlp.down_proj.weight has the shape \(32, 48\), but config.json describes \(32, 7\)",
        ),
        ({"vocab_size": 1}, "transformers cannot build it: "),
    ],
)
def test_a_configuration_of_other_shapes_than_the_files_is_one_message(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    write_model("qwen3", tmp_path / "qwen")
    config = json.loads((tmp_path / "qwen" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        open_model(tmp_path / "qwen", device="cpu")
