"""The way from the original's tensors to ours and back, by hand on small tensors."""

from pathlib import Path

import pytest
import torch

from hanmo.checkpoints.originals.recognise import layer_counts, merge, overlapping, recognise, some
from hanmo.checkpoints.originals.weights import Weights, find_weights
from hanmo.checkpoints.originals.writer import check_divides
from hanmo.errors import CheckpointError
from hanmo.families.weight_map import TensorMapping
from tests.unit.checkpoint_files import HUB, MEGATRON, original_tensors, tiny_eva, write_hub, write_megatron


def two_by_two(cut: int) -> list[torch.Tensor]:
    """0 to 15 as a square, as the pieces of two ranks."""
    square = torch.arange(16).reshape(4, 4)
    return list(square.chunk(2, dim=cut))


def test_ranks_to_ranks_takes_from_the_files_that_hold_something() -> None:
    assert [view.tolist() for view in overlapping(two_by_two(0), 0, 2, 3)] == [[[8, 9, 10, 11]]]
    quarters = list(torch.arange(8)[:, None].split(2))
    assert [view.flatten().tolist() for view in overlapping(quarters, 0, 4, 8)] == [[4, 5], [6, 7]]
    halves = list(torch.arange(6)[:, None].split(3))
    assert [view.flatten().tolist() for view in overlapping(halves, 0, 2, 4)] == [[2], [3]]


def test_fused_parts_are_merged_each_by_itself() -> None:
    """Queries 0-3 and keys 10-13 on two ranks: rank 0 holds 0, 1, 10, 11 and rank 1 the rest."""
    pieces = [torch.tensor(rows)[:, None] for rows in ([0, 1, 10, 11], [2, 3, 12, 13])]
    assert [part.flatten().tolist() for part in (merge(pieces, 2, part, cut=0) for part in range(2))] == [
        [0, 1, 2, 3],
        [10, 11, 12, 13],
    ]


def test_what_does_not_divide_is_named_with_both_numbers() -> None:
    entries, shapes = [TensorMapping("wi.weight", ("wi",), 0)], {"wi": (10, 4)}
    check_divides(entries, shapes, 5, heads=10)
    with pytest.raises(CheckpointError, match=r"wi\.weight: dimension 0 has 10, .* 3 does not divide 10"):
        check_divides(entries, shapes, 3, heads=None)
    with pytest.raises(CheckpointError, match="4 attention heads cannot be split over 5 ranks: 5 does not divide 4"):
        check_divides(entries, shapes, 5, heads=4)


def test_layers_are_counted_by_their_names() -> None:
    entries = [
        TensorMapping("a.{i}.x", ("a",), over="depth"),
        TensorMapping("b.{i}.y", ("b",), over="width"),
        TensorMapping("c", ("c",)),
    ]
    names = {"a.0.x", "a.12.x", "b.0.y", "c", "a.13.z"}
    assert layer_counts(entries, names) == {"depth": 13, "width": 1}


def test_original_tensors_become_ours(tmp_path: Path) -> None:
    """Both layouts give the tensors that they were made of, bit for bit."""
    state = {name: tensor.half() for name, tensor in tiny_eva().network.state_dict().items()}
    for folder in (write_megatron(tmp_path / "megatron"), write_hub(tmp_path / "hub")):
        original = recognise(find_weights(folder))
        original.require_complete()
        original.check_copies()
        tensors = dict(original.tensors())
        assert tensors.keys() == state.keys()
        assert all(torch.equal(tensors[name], state[name]) for name in state)
        assert original.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
        assert all(torch.equal(original.tensor(name), tensors[name]) for name in state)


def changed(tmp_path: Path, drop: str = "", add: str = "") -> Weights:
    tensors = original_tensors(MEGATRON)
    tensors.pop(drop, None)
    if add:
        tensors[add] = torch.zeros(1)
    return find_weights(write_megatron(tmp_path / "m", tensors))


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    gone = "decoder.blocks.1.ff.dense_relu_dense.wo.weight"
    original = recognise(changed(tmp_path, drop=gone, add="decoder.extra"))
    assert (original.missing, original.unexpected) == ([gone], ["decoder.extra"])
    with pytest.raises(
        CheckpointError, match=rf"1 tensors are missing: {gone}; 1 tensors are not part .*decoder\.extra"
    ):
        original.require_complete()


def test_a_file_that_lacks_the_very_names_it_is_known_by_is_still_recognised(tmp_path: Path) -> None:
    name = "encoder.blocks.0.self_attn.self_attn.project.weight"
    assert name in MEGATRON.signature
    original = recognise(changed(tmp_path, drop=name))
    assert (original.layout, original.missing) == (MEGATRON, [name])


def test_names_of_nobody_are_refused(tmp_path: Path) -> None:
    folder = write_megatron(tmp_path / "m", {"language_model.x": torch.zeros(1), "lm_head.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"its 2 tensors \(language_model\.x, .*fit no layout .*eva \(megatron\)"):
        recognise(find_weights(folder))


def test_optional_tensors_and_copies_may_be_absent(tmp_path: Path) -> None:
    tensors = original_tensors(MEGATRON)
    copies = [name for name in tensors if name.startswith("encoder.word") or name.endswith("role_embeds.weight")]
    original = recognise(
        find_weights(write_megatron(tmp_path / "m", {n: t for n, t in tensors.items() if n not in copies}))
    )
    original.require_complete()
    assert sorted(original.absent) == sorted(copies)


def test_a_tensor_is_read_from_its_copy_where_it_is_itself_missing(tmp_path: Path) -> None:
    original = recognise(changed(tmp_path, drop="word_embeds.weight"))
    original.require_complete()
    assert torch.equal(original.tensor("word_embeds.weight"), original_tensors(MEGATRON)["word_embeds.weight"])


def test_copies_that_differ_are_refused(tmp_path: Path) -> None:
    tensors = original_tensors(HUB)
    changed = tensors["shared.weight"].clone()
    changed[3, 2] += 1
    tensors["decoder.embed_tokens.weight"] = changed
    original = recognise(find_weights(write_hub(tmp_path / "hub", tensors)))
    with pytest.raises(CheckpointError, match=r"shared\.weight and decoder\.embed_tokens\.weight must be the same"):
        original.check_copies()
    tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    recognise(find_weights(write_hub(tmp_path / "equal", tensors))).check_copies()


def test_pieces_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    folder = write_megatron(tmp_path / "m", mp_world_size=2)
    tensors = original_tensors(MEGATRON)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1]
    torch.save({"module": tensors, "iteration": 7}, folder / "7" / "mp_rank_01_model_states.pt")
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight: the ranks' pieces do not fit together: \(\d+, 16\), \(\d+, 15\)"
    ):
        assert recognise(find_weights(folder)).shapes


def test_t5s_own_folders_are_not_taken_for_eva(tmp_path: Path) -> None:
    """T5 v1.1 has the very names of EVA's hub layout; the attention scale in config.json tells them apart."""
    folder = write_hub(tmp_path / "t5")
    (folder / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(CheckpointError, match="fit no layout that hanmo knows as bin"):
        recognise(find_weights(folder))


def test_gpt2s_own_folders_are_not_taken_for_pangu(tmp_path: Path) -> None:
    """They share about half of their names."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=3, n_head=2)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match="fit no layout"):
        recognise(find_weights(tmp_path / "gpt2"))


def test_long_lists_are_cut() -> None:
    assert some(["a", "b"], 2) == "a, b"
    assert some(["a", "b", "c"], 2) == "a, b and 1 more"
