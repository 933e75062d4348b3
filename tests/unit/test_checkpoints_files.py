"""Which files make up a checkpoint: tracker files, ranks, shards, and what is said where one is missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hanmo.checkpoints.originals.weights import find_weights
from hanmo.errors import CheckpointError

TENSORS = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}


def megatron(folder: Path, ranks: int = 1, name: str = "7", tracker: str | None = "7", **state: object) -> Path:
    inside = folder / name
    inside.mkdir(parents=True)
    for rank in range(ranks):
        content = {"module": TENSORS, "iteration": 7, "mp_world_size": ranks, **state}
        torch.save(content, inside / f"mp_rank_{rank:02d}_model_states.pt")
    if tracker is not None:
        (folder / "latest_checkpointed_iteration.txt").write_text(tracker)
    return folder


def test_the_tracker_file_names_the_folder(tmp_path: Path) -> None:
    weights = find_weights(megatron(tmp_path / "m", ranks=2, tracker="7\n"))
    assert (weights.container, len(weights.ranks), weights.iteration) == ("megatron", 2, 7)
    assert weights.names == ["a", "b"]
    assert weights.state == {"iteration": 7, "mp_world_size": 2}


@pytest.mark.parametrize("inner", ["", "7", "7/mp_rank_00_model_states.pt"])
def test_the_iteration_folder_and_a_rank_file_can_be_given_too(tmp_path: Path, inner: str) -> None:
    folder = megatron(tmp_path / "m")
    assert len(find_weights(folder / inner).files) == 1


def test_release_is_a_folder_without_a_number(tmp_path: Path) -> None:
    weights = find_weights(megatron(tmp_path / "m", name="release", tracker="release"))
    assert weights.iteration == 7


def test_deepspeeds_own_tracker_file_counts_where_the_other_is_missing(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "m", tracker=None)
    (folder / "latest").write_text("7")
    assert find_weights(folder).iteration == 7


def test_deepspeeds_own_name_of_an_iteration_is_a_folder(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "m", name="global_step7", tracker=None)
    (folder / "latest").write_text("global_step7\n")
    assert (find_weights(folder).iteration, len(find_weights(folder).files)) == (7, 1)
    (folder / "global_step7").rename(folder / "global_step8")
    (folder / "latest").write_text("global_step8")
    with pytest.raises(CheckpointError, match="the tracker file says iteration 8, the weights say 7"):
        find_weights(folder)


@pytest.mark.parametrize("name", ["latest_checkpointed_iteration.txt", "latest"])
@pytest.mark.parametrize("written", ["\ufeff7".encode(), "7\r\n".encode("utf-16"), b"\xfe\xff\x007", b"7\r\n"])
def test_a_tracker_file_that_windows_wrote_is_read(tmp_path: Path, name: str, written: bytes) -> None:
    folder = megatron(tmp_path / "m", tracker=None)
    (folder / name).write_bytes(written)
    assert find_weights(folder).iteration == 7


@pytest.mark.parametrize("name", ["mp_rank_00_model_states (1).pt", "mp_rank_00_model_states(2).pt"])
def test_a_rank_file_that_a_browser_numbered_is_read(tmp_path: Path, name: str) -> None:
    folder = megatron(tmp_path / "m")
    file = folder / "7" / "mp_rank_00_model_states.pt"
    file.rename(folder / "7" / name)
    for given in (folder, folder / "7" / name):
        assert find_weights(given).names == ["a", "b"]
    torch.save({"module": {"c": torch.ones(1)}, "iteration": 7}, file)  # its own name goes before
    assert find_weights(folder).names == ["c"]


def test_a_rank_file_under_another_name_is_told_its_name(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "m")
    other = (folder / "7" / "mp_rank_00_model_states.pt").rename(folder / "7" / "copy.pt")
    with pytest.raises(CheckpointError, match=r"copy\.pt: .*rank's file, name it mp_rank_00_model_states\.pt"):
        find_weights(other)


@pytest.mark.parametrize("inner", ["", "global_step5", "global_step5/zero_pp_rank_1_mp_rank_00_model_states.pt"])
def test_a_checkpoint_of_zero_3_is_said_to_be_one(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / "m"
    (folder / "global_step5").mkdir(parents=True)
    (folder / "latest").write_text("global_step5")
    for rank in range(2):
        content = {"module": {"a": torch.zeros(0)}, "param_shapes": [{"a": torch.Size((2, 3))}]}
        torch.save(content, folder / "global_step5" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"DeepSpeed's ZeRO-3, .* over 2 files .*zero_to_fp32\.py .* in .*/m, "):
        find_weights(folder / inner)


def test_total_iters_stands_for_iteration(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    torch.save({"module": TENSORS, "total_iters": 3}, folder / "mp_rank_00_model_states.pt")
    assert find_weights(folder).iteration == 3


@pytest.mark.parametrize("text", ["0", "-3", "../elsewhere", "", "seven"])
def test_a_senseless_tracker_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match="expected an iteration above 0 or 'release'"):
        find_weights(megatron(tmp_path / "m", tracker=text))


def test_a_tracker_file_that_names_nothing_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"names 8, but there is no folder .*; folders here: 7"):
        find_weights(megatron(tmp_path / "m", tracker="8"))


def test_without_a_tracker_file_the_folders_of_weights_are_offered(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no latest_checkpointed_iteration.txt; give one of .*m/7"):
        find_weights(megatron(tmp_path / "m", tracker=None))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_is_named(tmp_path: Path, rank: int) -> None:
    folder = megatron(tmp_path / "m", ranks=2)
    (folder / "7" / f"mp_rank_{rank:02d}_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=f"rank {rank} of 2 is missing"):
        find_weights(folder)


def test_more_ranks_than_were_written_are_refused(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "m")
    shutil.copy(folder / "7" / "mp_rank_00_model_states.pt", folder / "7" / "mp_rank_01_model_states.pt")
    with pytest.raises(CheckpointError, match="2 rank files, but they were written for 1 ranks"):
        find_weights(folder)


def test_ranks_of_different_iterations_are_refused(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "m", ranks=2)
    content = {"module": TENSORS, "iteration": 9, "mp_world_size": 2}
    torch.save(content, folder / "7" / "mp_rank_01_model_states.pt")
    with pytest.raises(CheckpointError, match=r"different iterations \(rank 0: 7, rank 1: 9\)"):
        find_weights(folder)


def test_a_tracker_file_of_another_iteration_is_refused_but_the_folder_opens(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "m", name="5", tracker="5")
    with pytest.raises(CheckpointError, match="the tracker file says iteration 5, the weights say 7"):
        find_weights(folder)
    assert find_weights(folder / "5").iteration == 7


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    torch.save({"optimizer": None, "iteration": 3}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="has no 'module' with the weights; it holds: optimizer, iteration"):
        find_weights(folder)
    torch.save({"module": {"a": torch.ones(1), "b": 3}}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="beside tensors it holds b"):
        find_weights(folder)


def test_zero_optimizer_files_beside_are_not_read(tmp_path: Path) -> None:
    folder = megatron(tmp_path / "m")
    (folder / "7" / "zero_pp_rank_0_mp_rank_00optim_states.pt").write_bytes(b"anything")
    assert len(find_weights(folder).files) == 1


def test_shards_are_joined_by_their_index(tmp_path: Path) -> None:
    for suffix, write in (("bin", torch.save), ("safetensors", save_file)):
        folder = tmp_path / suffix
        folder.mkdir()
        stem = "pytorch_model" if suffix == "bin" else "model"
        weight_map = {}
        for number, name in enumerate(TENSORS, start=1):
            weight_map[name] = f"{stem}-{number:05d}-of-00002.{suffix}"
            write({name: TENSORS[name]}, folder / weight_map[name])
        index = folder / f"{stem}.{suffix}.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert set(find_weights(folder).names) == set(TENSORS)

        index.write_text(json.dumps({"weight_map": {**weight_map, "c": weight_map["a"]}}))
        with pytest.raises(CheckpointError, match="c and 0 more are in none of the shards"):
            find_weights(folder)
        index.write_text(json.dumps({"weight_map": {**weight_map, "c": "gone"}}))
        with pytest.raises(CheckpointError, match="1 of 3 shards are missing: gone"):
            find_weights(folder)
        index.write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
        with pytest.raises(CheckpointError, match="expected the plain name of a file beside it"):
            find_weights(folder)


def test_a_file_without_tensors_is_one_message(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected tensors by name, but there are none"):
        find_weights(tmp_path)


def test_mindspore_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "PanguAlpha_2_6b.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="MindSpore"):
        find_weights(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"no weights here; found notes\.txt; expected model\.safetensors"):
        find_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        find_weights(tmp_path / "nowhere")


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    """The bytes of a tensor can be changed on disk after opening and are then seen: nothing was read before."""
    folder = tmp_path / "m"
    folder.mkdir()
    torch.save({"module": {"a": torch.full((1000,), 7.0)}, "iteration": 1}, folder / "mp_rank_00_model_states.pt")
    weights = find_weights(folder)
    with weights.files[0].open("r+b") as file:
        content = file.read()
        place = content.index(torch.full((4,), 7.0).numpy().tobytes())
        file.seek(place)
        file.write(torch.full((1,), 3.0).numpy().tobytes())
    assert weights.ranks[0]["a"][0] == 3.0
