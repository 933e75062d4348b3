"""Conversions that stop in the middle, continue, and are compared with what was written."""

import json
import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from hanmo.checkpoints import convert as convert_module
from hanmo.checkpoints import source
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.files import resumable
from hanmo.checkpoints.files.tensor_files import content_hash
from hanmo.checkpoints.inspect import inspect_model
from hanmo.checkpoints.originals.weights import find_weights
from hanmo.checkpoints.save import save_model
from hanmo.errors import CheckpointError, InUseError
from hanmo.locks import holding
from tests import processes
from tests.unit.checkpoint_files import tiny_eva, write_hub, write_megatron

LAST = "7/mp_rank_01_model_states.pt"


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    return write_megatron(tmp_path / "megatron")


def split(megatron: Path, target: Path, **more: Any) -> dict[str, Any]:
    return convert(megatron, target, to="original", ranks=2, **more)


def stopped_at_the_second_file(megatron: Path, target: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """A conversion whose second file cannot be read to its end."""
    piece = source.Source.piece

    def stop() -> Any:
        raise OSError(28, "No space left on device")
        yield

    def breaks(self: Any, entry: Any, rank: int, *rest: Any, **named: Any) -> Any:
        stored = piece(self, entry, rank, *rest, **named)
        if rank == 1 and entry.theirs.startswith("lm_head"):
            stored.blocks = stop
        return stored

    with monkeypatch.context() as patch:
        patch.setattr(source.Source, "piece", breaks)
        with pytest.raises(CheckpointError, match="No space left on device; nothing has been changed"):
            split(megatron, target, **more)


def test_the_index_has_every_tensors_hash(tmp_path: Path, megatron: Path) -> None:
    split(megatron, tmp_path / "two", verify=True)
    index = json.loads((tmp_path / "two" / "tensors.json").read_text())
    weights = find_weights(tmp_path / "two")
    assert index["hash"] == "xxh3_64"
    for file, tensors in zip(weights.files, weights.ranks, strict=True):
        facts = index["files"][str(file.relative_to(tmp_path / "two"))]
        assert facts["bytes"] == file.stat().st_size
        assert {name: fact["hash"] for name, fact in facts["tensors"].items()} == {
            name: content_hash(tensor) for name, tensor in tensors.items()
        }


def damage(file: Path) -> None:
    """Change one bit in the middle, which is in a tensor."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("to", ["hanmo", "original"])
def test_verifying_finds_what_the_disk_changed(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = write_hub(tmp_path / "hub")
    convert(hub, tmp_path / "sound", to=to, verify=True)
    assert inspect_model(tmp_path / "sound").healthy
    verify = resumable.verify_index

    def damaged(weights: Any, **options: Any) -> Any:
        damage(weights.files[0])
        return verify(find_weights(weights.path), **options)

    monkeypatch.setattr(resumable, "verify_index", damaged)
    with pytest.raises(CheckpointError, match=r"is not as it was written: its content hash is .*, tensors\.json says"):
        convert(hub, tmp_path / "new", to=to, verify=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["hub", "sound"]


def test_inspect_compares_with_the_index(tmp_path: Path, megatron: Path) -> None:
    split(megatron, tmp_path / "two")
    report = inspect_model(tmp_path / "two")
    assert next(check for check in report.checks if check.name == "hashes").verdict == "ok"
    damage(tmp_path / "two" / LAST)
    report = inspect_model(tmp_path / "two")
    check = next(check for check in report.checks if check.name == "hashes")
    assert check.verdict == "fault" and "mp_rank_01" in check.detail and not report.healthy


def test_a_model_saved_over_a_conversion_drops_its_index(tmp_path: Path) -> None:
    from hanmo.checkpoints import open_model, save_model

    convert(write_hub(tmp_path / "hub"), tmp_path / "ours")
    assert (tmp_path / "ours" / "tensors.json").is_file()
    save_model(open_model(tmp_path / "ours", device="cpu"), tmp_path / "ours")
    assert not (tmp_path / "ours" / "tensors.json").exists()


def test_what_is_finished_is_kept_and_not_written_again(
    tmp_path: Path, megatron: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at_the_second_file(megatron, tmp_path / "two", monkeypatch, resume=True)
    draft = tmp_path / ".two.partial"
    first = draft / "7" / "mp_rank_00_model_states.pt"
    assert not (tmp_path / "two").exists()
    assert sorted(item.name for item in first.parent.iterdir()) == [first.name]
    written = first.stat().st_ino
    totals: list[int] = []
    done: list[int] = []
    split(megatron, tmp_path / "two", resume=True, verify=True, start=totals.append, progress=done.append)
    assert totals == [sum(done)]
    assert (tmp_path / "two" / "7" / first.name).stat().st_ino == written
    assert not draft.exists() and not (tmp_path / "two" / "job.json").exists()
    split(megatron, tmp_path / "direct")
    for file in ("tensors.json", "7/mp_rank_00_model_states.pt", LAST):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes()


@pytest.mark.parametrize("files", [7, {"a": 7}, {"a": {"tensors": {"b": 7}}}], ids=str)
def test_an_index_of_another_form_is_one_message(
    tmp_path: Path, megatron: Path, monkeypatch: pytest.MonkeyPatch, files: Any
) -> None:
    stopped_at_the_second_file(megatron, tmp_path / "two", monkeypatch, resume=True)
    index = tmp_path / ".two.partial" / "tensors.json"
    index.write_text(json.dumps({"hash": json.loads(index.read_text())["hash"], "files": files}))
    with pytest.raises(CheckpointError, match=r"tensors\.json: not as a conversion writes it"):
        split(megatron, tmp_path / "two", resume=True)


def test_files_with_another_kind_of_hash_are_written_again(
    tmp_path: Path, megatron: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that continues may lack xxhash: an index holds hashes of one kind."""
    stopped_at_the_second_file(megatron, tmp_path / "two", monkeypatch, resume=True)
    index = tmp_path / ".two.partial" / "tensors.json"
    content = json.loads(index.read_text())
    for facts in content["files"].values():
        for fact in facts["tensors"].values():
            fact["hash"] = "0" * 16
    index.write_text(json.dumps({**content, "hash": "blake2b_64"}))
    split(megatron, tmp_path / "two", resume=True)
    assert next(check for check in inspect_model(tmp_path / "two").checks if check.name == "hashes").verdict == "ok"


def test_without_resume_nothing_is_kept(tmp_path: Path, megatron: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_at_the_second_file(megatron, tmp_path / "two", monkeypatch)
    assert [item.name for item in tmp_path.iterdir()] == ["megatron"]


def test_another_conversion_is_not_continued(tmp_path: Path, megatron: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_at_the_second_file(megatron, tmp_path / "two", monkeypatch, resume=True)
    with pytest.raises(CheckpointError, match=r"was another one: different are dtype \(None then\); repeat it"):
        split(megatron, tmp_path / "two", resume=True, dtype="bf16")
    os.utime(megatron / "7" / "mp_rank_00_model_states.pt", (1, 1))
    with pytest.raises(CheckpointError, match="was another one: different are files"):
        split(megatron, tmp_path / "two", resume=True)
    split(megatron, tmp_path / "two")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["megatron", "two"]


def test_a_killed_conversion_continues(tmp_path: Path, megatron: Path) -> None:
    """SIGKILL at the second file, without --resume: what was finished is there all the same."""
    program = f"""
        import os, signal
        from hanmo.checkpoints.convert import convert
        from hanmo.checkpoints.files.tensor_files import LazyTensor
        write = LazyTensor.write
        def kill(self, file, progress):
            if "mp_rank_01" in str(file._fileobj._file.name):
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, file, progress)
        LazyTensor.write = kill
        convert({str(megatron)!r}, {str(tmp_path / "two")!r}, to="original", ranks=2)
    """
    run = processes.run([sys.executable, "-c", textwrap.dedent(program)])
    assert run.returncode == -signal.SIGKILL, run.stderr
    draft = tmp_path / ".two.partial"
    assert len(list((draft / "7").iterdir())) == 2, "the finished file and half of the second"
    report = split(megatron, tmp_path / "two", resume=True, verify=True)
    assert len(report["files"]) == 2
    assert [item.name for item in (tmp_path / "two").rglob("*.tmp")] == []
    assert sorted(item.name for item in tmp_path.iterdir()) == ["megatron", "two"]


def test_two_at_once_are_kept_apart(tmp_path: Path, megatron: Path) -> None:
    draft = tmp_path / ".two.partial"
    draft.mkdir()
    with (
        holding(tmp_path / "two"),
        pytest.raises(InUseError, match=f"two: in use by process {os.getpid()} on .* since"),
    ):
        split(megatron, tmp_path / "two")
    assert draft.is_dir(), "what the first one has written so far"


def test_an_interrupted_replacement_is_completed_by_who_opens_or_writes_the_folder(tmp_path: Path) -> None:
    """Killed between its two renames: the folder is gone, what it was and what it becomes lie beside it."""
    from hanmo.checkpoints import open_model

    source = write_hub(tmp_path / "hub")

    def interrupt(name: str) -> Path:
        """``new`` is the one that was to come; of ``old`` nothing but the user's notes is looked at."""
        convert(source, tmp_path / name)
        (tmp_path / name / "notes.txt").write_text("the user's")
        shutil.copytree(tmp_path / name, tmp_path / f".{name}.old")
        (tmp_path / name).rename(tmp_path / f".{name}.new")
        return tmp_path / name

    assert open_model(interrupt("opened"), device="cpu").network.num_parameters() > 0
    assert inspect_model(interrupt("inspected")).healthy
    with pytest.raises(CheckpointError, match="is not empty"):
        convert(source, interrupt("converted"))
    convert(source, interrupt("forced"), force=True)
    save_model(open_model(source, device="cpu"), interrupt("saved"))
    for name in ("opened", "inspected", "converted", "forced", "saved"):
        assert (tmp_path / name / "notes.txt").read_text() == "the user's"
        assert inspect_model(tmp_path / name).healthy
    assert not list(tmp_path.glob(".*"))


def test_plain_transformers_folders_continue_and_are_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import T5ForConditionalGeneration

    monkeypatch.setattr(convert_module, "SHARD_BYTES", 20_000)
    hub = write_hub(tmp_path / "hub")
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(CheckpointError, match="No space left; nothing has been changed; the finished files lie in"):
            convert(hub, tmp_path / "hf", to="hf", resume=True)
    finished = [file.stat().st_ino for file in sorted((tmp_path / ".hf.partial").glob("model-*"))]
    report = convert(hub, tmp_path / "hf", to="hf", resume=True, verify=True)
    assert len(report["files"]) > 2 and report["dtype"] == "fp32"
    assert [(tmp_path / "hf" / name).stat().st_ino for name in report["files"]] == finished
    convert(hub, tmp_path / "one", to="hf")
    one, other = (T5ForConditionalGeneration.from_pretrained(tmp_path / name).state_dict() for name in ("hf", "one"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    original = find_weights(hub).ranks[0]
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(one[name], original[name].float() * tiny_eva().network.config.d_kv ** -0.5)


def test_plain_transformers_folders_in_half_precision_round_once(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub")
    report = convert(hub, tmp_path / "hf", to="hf", dtype="bf16")
    assert any("the queries, with the scale in them, are rounded" in note for note in report["notes"])
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    stored = find_weights(hub).ranks[0][name].float() * tiny_eva().network.config.d_kv ** -0.5
    assert torch.equal(find_weights(tmp_path / "hf").ranks[0][name], stored.bfloat16())


def test_loss_scalers_survive_the_way_back(tmp_path: Path) -> None:
    """Old trainers pickled an object of a class of their own; kept in our folder it must be readable again."""
    import types

    module = types.ModuleType("fp16.loss_scaler")
    module.LossScaler = type("LossScaler", (), {"__module__": "fp16.loss_scaler"})  # type: ignore[attr-defined]
    scaler = module.LossScaler()  # type: ignore[attr-defined]
    scaler.cur_scale = 1024
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fp16", types.ModuleType("fp16"))
        patch.setitem(sys.modules, "fp16.loss_scaler", module)
        folder = write_megatron(tmp_path / "m", scaler=scaler)
    convert(folder, tmp_path / "ours", config=folder / "model_config.json")
    convert(tmp_path / "ours", tmp_path / "back", to="original")
    assert find_weights(tmp_path / "back").state["scaler"] == {"cur_scale": 1024}
    assert torch.equal(
        find_weights(tmp_path / "back").ranks[0]["lm_head.weight"], find_weights(folder).ranks[0]["lm_head.weight"]
    )
