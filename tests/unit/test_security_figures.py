"""Every figure of SECURITY.md at its boundary: what reaches it is read, and one more is refused."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hanmo.checkpoints.originals import archives, config_inference
from hanmo.checkpoints.originals.pickle_scan import ClaimError, Claims, check_content, scan_pickle
from hanmo.errors import CheckpointError
from hanmo.families.huggingface import rendering
from hanmo.families.huggingface.templates import is_plain
from hanmo.families.untrusted import check_counts
from hanmo.limits import MEMORY, MEMORY_PER_BYTE, SECONDS, SECONDS_PER_MB, WAIT

MIB = 1 << 20


def scanned(pickled: bytes) -> Claims:
    claims = Claims()
    assert scan_pickle(io.BytesIO(pickled), claims)
    return claims


def objects(count: int) -> bytes:
    """A tuple of 100,000 objects that a pickle names again until it stands for ``count`` of them, the rest as lists."""
    again, rest = divmod(count, 100_000)
    return b"(" + b"N" * 99_999 + b"tq\0" + b"h\0" * again + b"]" * rest + b"."


def nested(levels: int) -> bytes:
    return b"N" + b"\x85" * levels + b"."


def odd_keys(count: int) -> bytes:
    return b"}(" + b")N" * count + b"u."


@pytest.mark.parametrize(
    ("make", "most", "problem"),
    [
        (objects, 10_000_000, "stands for more than 10,000,000 objects"),
        (nested, 100, "more than 100 deep"),
        (odd_keys, 10_000, "more than 10,000 keys"),
    ],
)
def test_pickles_are_followed_to_the_limit(make: Callable[[int], bytes], most: int, problem: str) -> None:
    scanned(make(most))
    with pytest.raises(ClaimError, match=problem):
        scanned(make(most + 1))


@pytest.mark.parametrize("size", [0, 1000])
def test_tensors_and_copies_claim_sixteen_times_the_file_and_64_mib(size: int) -> None:
    most = 16 * size + 64 * MIB
    one = torch.zeros(1, dtype=torch.uint8)
    check_content({"a": one.expand(most - 1), "b": one}, size)
    Claims(copied=most).check_copies(size)
    with pytest.raises(ClaimError, match=f"claim {most + 1:,} bytes"):
        check_content({"a": one.expand(most), "b": one}, size)
    with pytest.raises(ClaimError, match=f"copies of {most + 1:,} bytes"):
        Claims(copied=most + 1).check_copies(size)


def test_archives_unpack_to_twenty_times_the_file_and_64_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros pack to a thousandth. The 64 MiB are made one, so that the test is quick."""
    assert archives.SLACK == 64 * MIB
    monkeypatch.setattr(archives, "SLACK", MIB)
    path = tmp_path / "a.zip"

    def packed(unpacked: int) -> int:
        """The size of the file after writing an archive of so many zeros."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data", bytes(unpacked))
        return path.stat().st_size

    most = MIB
    while (room := MIB + 20 * packed(most)) > most:
        most = room
    archives.read_archive(path)
    assert most + 1 > 20 * packed(most + 1) + MIB
    with pytest.raises(archives.ArchiveError, match="unpack"):
        archives.read_archive(path)


@pytest.mark.parametrize(
    ("key", "tensors", "most"),
    [
        ("num_layers", 1, 256),
        ("num_hidden_layers", 300, 300),
        ("num_heads", 1, 1_000_000),
        ("num_experts", 1_000_002, 1_000_002),
    ],
)
def test_a_configuration_counts_to_the_limit(key: str, tensors: int, most: int) -> None:
    check_counts({"text_config": {key: most}}, tensors, "config.json")
    with pytest.raises(CheckpointError, match=rf"{key} is {most + 1:,}"):
        check_counts({"text_config": {key: most + 1}}, tensors, "config.json")


@pytest.mark.parametrize("numbers_per_byte", [1, 8])
def test_a_network_has_as_many_numbers_as_the_files_bytes_and_ten_million(
    numbers_per_byte: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    weights: Any = SimpleNamespace(path=tmp_path, files=[tmp_path / "model.safetensors"])
    config: Any = SimpleNamespace(**({"quantization_config": {"bits": 1}} if numbers_per_byte == 8 else {}))
    family: Any = SimpleNamespace(name="glm")
    most = 1000 * numbers_per_byte + 10_000_000

    def described(count: int) -> None:
        network = torch.nn.Linear(count, 1, bias=False, device="meta")
        monkeypatch.setattr(config_inference, "blank_network", lambda *_: network)
        config_inference.check_size(family, config, weights)

    described(most)
    with pytest.raises(CheckpointError, match=f"a network of {most + 1:,} numbers"):
        described(most + 1)


def test_a_template_of_4096_characters_is_rendered_here() -> None:
    assert is_plain("a" * 4096) and not is_plain("a" * 4097)


def test_the_limits_of_processes_are_those_of_the_document() -> None:
    """What they do is tested in test_limits.py and test_hostile_files.py; the document names these figures."""
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    for figure in (
        f"{SECONDS} seconds of processor time and {MEMORY // MIB} MB",
        f"{SECONDS_PER_MB} seconds and {MEMORY_PER_BYTE} MB more",
        f"{WAIT} seconds by the clock",
        f"with {rendering.MEMORY // MIB} MB\n  and {rendering.SECONDS} seconds of processor time",
    ):
        assert figure in text
