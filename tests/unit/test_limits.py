"""What trying a stranger's file allows: more for large files, for large vocabularies take long to read."""

import json
import time
from pathlib import Path

import pytest

from hanmo import limits
from hanmo.errors import CheckpointError
from hanmo.families import untrusted
from hanmo.families.untrusted import check_tokenizer

MB = 1 << 20


def work(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def test_the_time_that_is_allowed_grows_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 1)
    limits.run_within_limits(lambda: work(2.5), "a large file", size=4 * MB)
    with pytest.raises(CheckpointError, match="a small file: takes more than 1 seconds"):
        limits.run_within_limits(lambda: work(2.5), "a small file")


def test_the_memory_that_is_allowed_grows_with_the_file() -> None:
    limits.run_within_limits(lambda: bytearray(900 * MB), "a large file", size=8 * MB)
    with pytest.raises(CheckpointError, match="a small file: takes more than 800 MB"):
        limits.run_within_limits(lambda: bytearray(900 * MB), "a small file")


@pytest.mark.parametrize(
    ("size", "number", "is_tried"), [(0, 90_000, False), (0, 262_144, True), (400_000, 262_144, False)]
)
def test_ids_below_the_bytes_of_the_vocabulary_are_ordinary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, number: int, is_tried: bool
) -> None:
    """Folders of Qwen and Gemma name ids above 150,000 beside the vocabulary that has them; each trial takes seconds."""
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": number}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"normalizer": None}) + " " * size)
    sizes: list[int] = []
    monkeypatch.setattr(untrusted, "run_within_limits", lambda task, what, size: sizes.append(size))
    check_tokenizer(tmp_path, {}, lambda: None)
    assert sizes == ([(tmp_path / "tokenizer.json").stat().st_size] if is_tried else [])
