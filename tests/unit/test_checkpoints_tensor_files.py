"""Written files: torch, unzip and safetensors read what was meant, hashes are of the content, memory stays small."""

import argparse
import hashlib
import json
import sys
import tempfile
import textwrap
import zipfile
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hanmo.checkpoints.files import tensor_files
from hanmo.checkpoints.files.tensor_files import (
    LazyTensor,
    content_hash,
    in_blocks,
    sharded,
    write_safetensors,
    write_torch,
)
from hanmo.checkpoints.originals.unpickle import read_pickle
from tests import processes

DTYPES = list(tensor_files._NAMES)
TENSORS = {
    **{str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES},
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "large": torch.randn(300, 70),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "BLOCK", 1000)


def assert_same(read: dict[str, torch.Tensor]) -> None:
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


@pytest.mark.parametrize("options", [{"mmap": True}, {"weights_only": False}], ids=str)
def test_torch_reads_what_is_written(tmp_path: Path, options: dict[str, Any]) -> None:
    content = {"module": TENSORS, "iteration": 3, "args": argparse.Namespace(lr=0.1), "again": TENSORS["large"]}
    write_torch(content, tmp_path / "a.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        read = torch.load(tmp_path / "a.pt", **options)
    assert_same(read["module"])
    assert (read["iteration"], read["args"].lr) == (3, 0.1)
    assert read["again"].data_ptr() == read["module"]["large"].data_ptr(), "one tensor is stored once"
    assert_same(read_pickle(tmp_path / "a.pt")["module"])


def test_the_archive_is_sound_and_its_tensors_aligned(tmp_path: Path) -> None:
    write_torch(TENSORS, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None, "a checksum is wrong"
        assert len([name for name in archive.namelist() if "/data/" in name]) == len(TENSORS)
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
    read = torch.load(tmp_path / "a.pt", mmap=True)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values() if tensor.numel())


def test_huge_members_are_aligned_and_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2 GiB on, sizes go to another field of the header; lowering the limit exercises that field."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    write_torch(TENSORS, tmp_path / "a.pt")
    monkeypatch.undo()
    read = torch.load(tmp_path / "a.pt", mmap=True)
    assert_same(read)
    assert read["large"].data_ptr() % 64 == 0
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None


def test_a_flipped_bit_is_seen_by_unzip(tmp_path: Path) -> None:
    write_torch({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(bytes(4000)) + 5] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() == "archive/data/0"


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    write_safetensors({name: LazyTensor.of(tensor) for name, tensor in TENSORS.items()}, tmp_path / "a.safetensors")
    assert_same(load_file(tmp_path / "a.safetensors"))


def test_the_hash_is_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xxhash

    stored = LazyTensor.of(TENSORS["transposed"])
    write_safetensors({"a": stored}, tmp_path / "a")
    content = np.arange(6, dtype="<f4").reshape(2, 3).T.tobytes()
    assert stored.digest == content_hash(TENSORS["transposed"]) == xxhash.xxh3_64(content).hexdigest()
    monkeypatch.setattr(tensor_files, "HASH", "blake2b_64")
    assert content_hash(TENSORS["transposed"]) == hashlib.blake2b(content, digest_size=8).hexdigest()


@given(st.data())
def test_blocks_are_the_joined_views(data: st.DataObject) -> None:
    dim, count = data.draw(st.integers(0, 1)), data.draw(st.integers(1, 3))
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    views = list(torch.randn(rows * count if dim == 0 else rows, columns * count).split((rows, columns)[dim], dim=dim))
    blocks = list(in_blocks(views, dim))
    assert torch.equal(torch.cat(blocks), torch.cat(views, dim=dim))
    assert all(len(block) == 1 or block.nbytes <= 1000 for block in blocks)


def test_shards_hold_no_more_than_the_limit() -> None:
    tensors = {name: LazyTensor.of(torch.zeros(10, 50)) for name in "abcd"}
    tensors["e"] = LazyTensor.of(torch.zeros(3).bfloat16())
    files, texts = sharded(tensors, 4000)
    names = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    held = dict(zip(names, [["a", "b"], ["c", "d"], ["e"]], strict=True))
    assert {file.name: list(file.tensors) for file in files} == held
    index = json.loads(texts["model.safetensors.index.json"])
    assert index["metadata"] == {"total_size": 8006}
    assert index["weight_map"] == {tensor: file for file, inside in held.items() for tensor in inside}
    whole, texts = sharded(tensors, 10_000)
    assert [file.name for file in whole] == ["model.safetensors"] and not texts
    assert len(sharded(tensors, 1)[0]) == 5, "a tensor is never cut"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12))
def test_threads_write_what_a_file_would_hold(writes: list[tuple[int, int]]) -> None:
    """Small and large pieces, here and there, also over one another: the later one counts."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(tensor_files, "_SMALL", 8)
        plain = BytesIO()
        with closing(tensor_files.BackgroundFile(Path(folder) / "a")) as file:
            for number, (back, size) in enumerate(writes):
                place = max(plain.tell() - back, 0)
                for written in (plain, file):
                    written.seek(place)
                    written.write(bytes([number]) * size)
            assert file.tell() == plain.tell()
            file.flush()
        assert (Path(folder) / "a").read_bytes() == plain.getvalue()


@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_what_only_the_flush_meets_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    """A disk may fail, or be full, after the system has taken the bytes; it says so once only."""

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "_to_disk", fails)
    with pytest.raises(OSError, match="No space left"):
        write({"a": LazyTensor.of(torch.zeros(300_000))}, tmp_path / "a")


def test_anonymous_memory_stays_small(tmp_path: Path) -> None:
    """200 MB are cut, converted and written by a process that may have 60 MB more than at its start."""
    program = f"""
        import resource, sys, torch
        from pathlib import Path
        from hanmo.checkpoints.files.tensor_files import LazyTensor, in_blocks, write_torch, write_safetensors

        def anonymous():
            said = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            return int(said["RssAnon"].split()[0]) / 1000

        folder, peak = Path({str(tmp_path)!r}), 0.0
        mapped = torch.from_file(str(folder / "zeros"), size=50_000_000, dtype=torch.float32).reshape(5000, 10_000)
        start = anonymous()

        def watch(done):
            global peak
            peak = max(peak, anonymous() - start)

        def halves():
            return (block.half() for block in in_blocks([mapped[:, :5000], mapped[:, 5000:]], 1))

        stored = LazyTensor((5000, 10_000), torch.float16, halves)
        write_torch({{"a": stored}}, folder / "a.pt", watch)
        write_safetensors({{"a": LazyTensor.of(mapped[:, 1:])}}, folder / "a.safetensors", watch)
        print(peak)
    """
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(200_000_000)
    run = processes.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    assert 0 < float(run.stdout) < 60
    assert (tmp_path / "a.pt").stat().st_size > 100_000_000
